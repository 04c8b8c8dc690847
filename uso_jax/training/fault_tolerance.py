# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How a run survives trouble: numbers that are not finite, requests to end, and hangs.

`check` judges the metrics of every train step; `NotFinite` makes `fit` return to the last checkpoint. `StopRequest`
turns SIGTERM and Ctrl-C into a checkpoint and the end of the program. `Watchdog` ends a program that hangs, so that it
can be started again.
"""

import faulthandler
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

from uso_jax.common import locks
from uso_jax.common.errors import InputError
from uso_jax.training.record import RunRecord
from uso_jax.training.stage import StageConfig


class NotFinite(Exception):
    """A train step ended in numbers that no later step can use.

    Attributes:
      stage: name of the stage.
      step: global step, counted over all stages.
      position: position of the data after the step's batch.
      sentence: what happened.
    """

    def __init__(self, stage: str, step: int, numbers: Mapping[str, float], position: dict):
        self.stage, self.step, self.position = stage, step, position
        self.sentence = (
            f"stage {stage!r} diverged at step {step}: loss {numbers['loss']}, norm of gradients"
            f" {numbers['grad_norm']}, of parameters {numbers['param_norm']}"
        )
        super().__init__(self.sentence)

    def give_up(self, last: int | None, rollbacks: int) -> InputError:
        """Return the error that ends the run; `last` is the step of its last checkpoint."""
        tried = f" after {rollbacks} roll-backs" if rollbacks else ""
        kept = "no checkpoint was written before" if last is None else f"the last good checkpoint is step {last}"
        return InputError(
            f"{self.sentence}{tried}; {kept}. Lower --config.stages.{self.stage}.learning_rate, with another --workdir,"
            " or check the data"
        )


def check(
    stage: StageConfig, step: int, numbers: dict[str, float], record: RunRecord, position: dict
) -> dict[str, float]:
    """Return the metrics to report for a train step; the record counts steps whose reward was not finite.

    Args:
      stage: the stage.
      step: global step.
      numbers: metrics of the step.
      record: record of the run.
      position: position of the data after the step's batch.

    Raises:
      NotFinite: loss, gradient or parameters are not finite.
      InputError: the reward was not finite in too many steps in a row.
    """
    if stage.reward is not None:
        numbers = _count_skipped(stage, step, numbers, record)
    # The parameters' norm counts, too: a step with a finite loss may end in numbers that no later step can use.
    if not all(map(math.isfinite, numbers.values())):
        raise NotFinite(stage.name, step, numbers, position)
    return numbers


def _count_skipped(stage: StageConfig, step: int, numbers: dict[str, float], record: RunRecord) -> dict[str, float]:
    """Count skipped steps, stop the run after too many in a row, and leave out figures that mean nothing."""
    stage_record = record.stages[record.stage]
    skipped = numbers["reward_skipped"] > 0
    record.skipped_in_a_row = (record.skipped_in_a_row or 0) + 1 if skipped else 0
    if skipped:
        stage_record.skipped = (stage_record.skipped or 0) + 1
    if record.skipped_in_a_row >= stage.reward.max_skipped:
        raise InputError(
            f"stage {stage.name!r}: the reward ({', '.join(stage.reward.weights)}) or its gradient was not finite in"
            f" {record.skipped_in_a_row} steps in a row, the last of them step {step};"
            " parameters are as they were before these steps. Check the reward's weights and the data"
        )
    rewarded = numbers["reward_active"] > 0 and not skipped
    of_reward = lambda key: key == "loss_reward" or key.startswith("reward_") or key == "reward"
    kept = {key: number for key, number in numbers.items() if rewarded or not of_reward(key)}
    return kept | {"reward_skipped": float(stage_record.skipped or 0)}


HUNG = 75  # exit code of a hung run: EX_TEMPFAIL of sysexits, which means that a retry may succeed


INTERRUPTED = 130  # exit code after Ctrl-C, as of a shell


class Stopped(SystemExit):
    """A run was asked to end and has saved a checkpoint; the program ends with exit code 0, or 130 after Ctrl-C."""

    def __init__(self, sentence: str, code: int = 0):
        super().__init__(code)
        self.sentence = sentence


class StopRequest:
    """Receives SIGTERM and Ctrl-C, sent to this process or to any process of the run; Ctrl-C twice ends it at once.

    Several processes must stop at the same step, so JAX's coordinator chooses one that none has passed yet. A thread
    answers Ctrl-C, because Python's own handlers wait for a compilation to end.

    Attributes:
      code: exit code of the program.
    """

    def __init__(self):
        self.code = 0
        self._came = threading.Event()
        self._alone = jax.process_count() == 1  # else JAX has taken SIGTERM
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._listen([signal.SIGINT, *([signal.SIGTERM] if self._alone else [])])

    def came(self, step: int | None = None) -> bool:
        """Return whether to stop.

        Args:
          step: the global step that is done. Every process must pass it after each train step, and only there.
        """
        if self._alone:
            return self._came.is_set()
        return step is not None and bool(multihost_utils.reached_preemption_sync_point(step))

    def close(self) -> None:
        """Restore the signals' former handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._write)  # ends the thread
            self._before = {}

    def _listen(self, numbers: list[signal.Signals]) -> None:
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        # The handlers only keep Python's own from running: the thread reads each signal's number from the pipe.
        self._before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        threading.Thread(target=self._answer, args=(read,), name="signals", daemon=True).start()

    def _answer(self, read: int) -> None:
        while number := os.read(read, 1):
            if number[0] == signal.SIGTERM:
                self._came.set()
            elif number[0] == signal.SIGINT:
                self._interrupt()
        os.close(read)

    def _interrupt(self) -> None:
        if self.code == INTERRUPTED:
            print(
                "\nended at once; the same command continues from the last checkpoint", file=sys.__stderr__, flush=True
            )
            locks.abandon()
            os._exit(INTERRUPTED)
        self.code = INTERRUPTED
        print("\nending after this step and a save; Ctrl-C again ends at once", file=sys.__stderr__, flush=True)
        if self._alone:
            self._came.set()
        else:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX tells the other processes


class Watchdog:
    """Ends a program that has shown no sign of life for a number of seconds; 0: never.

    It prints where the program was last seen and the stack of every thread, and exits with code `HUNG`, so that a
    supervisor can start the program again. If the interpreter itself hangs, faulthandler ends it with exit code 1.
    """

    def __init__(self, seconds: float):
        self._seconds, self._where, self._seen = seconds, "at the start", time.monotonic()
        self._closed = threading.Event()
        if seconds:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def beat(self, where: str) -> None:
        """Show a sign of life; `where` says what the program has just done."""
        self._where, self._seen = where, time.monotonic()

    def close(self) -> None:
        """Stop watching."""
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
