# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a cluster does to a long run from outside: a request to end, and a step that never ends."""

import faulthandler
import os
import signal
import sys
import threading
import time

import jax
from jax.experimental import multihost_utils

HUNG = 75  # exit code of a hung run; sysexits' EX_TEMPFAIL: try again


class Stopped(SystemExit):
    """A run was asked to end and has saved; the program ends with exit code 0."""

    def __init__(self, sentence: str):
        super().__init__(0)
        self.sentence = sentence


class StopRequest:
    """Whether SIGTERM has come, to this process or, of several, to any of them.

    Several processes must stop at the same step, so JAX's coordinator chooses one that none has passed yet.
    """

    def __init__(self):
        self._came, self._before = threading.Event(), None
        self._alone = jax.process_count() == 1  # or JAX has taken the signal
        if self._alone and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, lambda *_: self._came.set())

    def came(self, step: int | None = None) -> bool:
        """Tell whether to stop; every process calls it after each of its steps, and only there gives the step."""
        if self._alone:
            return self._came.is_set()
        return step is not None and bool(multihost_utils.reached_preemption_sync_point(step))

    def close(self) -> None:
        """Give the signal back."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


class Watchdog:
    """Ends a program that has shown no sign of life for a number of seconds; 0: never.

    It prints where the program was last seen and what all threads are doing, and exits with `HUNG`, so that whoever
    started the program can start it again. Should the interpreter itself hang, faulthandler ends it with exit code 1.
    """

    def __init__(self, seconds: float):
        self._seconds, self._where, self._seen = seconds, "at the start", time.monotonic()
        self._closed = threading.Event()
        if seconds:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def beat(self, where: str) -> None:
        """Show a sign of life."""
        self._where, self._seen = where, time.monotonic()

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()
        if self._seconds:
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(min(self._seconds / 4, 5.0)):
            idle = time.monotonic() - self._seen
            if idle > self._seconds:
                process = f"process {jax.process_index()} " if jax.process_count() > 1 else ""
                print(
                    f"\nerror: {process}hung: nothing for {idle:.0f} s {self._where} (config.guard.watchdog_seconds is"
                    f" {self._seconds:g}); the same command continues from the last checkpoint. What the threads do:",
                    file=sys.__stderr__,
                    flush=True,
                )
                faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
                os._exit(HUNG)
            # This thread runs only if the interpreter does; the timer needs none.
            faulthandler.dump_traceback_later(self._seconds + min(self._seconds, 10), exit=True, file=sys.__stderr__)
        faulthandler.cancel_dump_traceback_later()
