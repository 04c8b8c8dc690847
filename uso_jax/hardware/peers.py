# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The processes of one run end together, with the same sentence and exit code, and start with the same settings.

Without this, an error in one process leaves the others in a collective operation until JAX's heartbeat ends them with
an abort, and the process itself waits for them in JAX's shutdown barrier for a minute. Threads of every process
therefore watch the key-value store of JAX's coordinator, which process 0 hosts:

    uso_jax/beat/I    a number that grows while process I lives; process 0 reads it
    uso_jax/end/0     exit code, process and sentence of the first process that failed, which ends all others
    uso_jax/gone/I    process I has read that; process 0 then ends last, as JAX aborts processes without coordinator
    uso_jax/done/I    process I is done
    uso_jax/facts/N/I what process I works with, see `agree`
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from uso_jax.common import compat, locks, untrusted
from uso_jax.common.differences import first_differences
from uso_jax.common.errors import InputError
from uso_jax.hardware.coordinator import Client, Unreachable

LOST = 75  # exit code after the loss of another process: EX_TEMPFAIL of sysexits, which means that a retry may succeed
_SILENT = 30.0  # seconds without a beat after which a process is lost; JAX's own heartbeat comes later, and aborts
_GRACE = 8.0  # seconds that a process with an error has to close its files
_AGREE = 600.0  # seconds to wait for a slower process
_AGAIN = "the same command continues from the last checkpoint"


class Peers:
    """The other processes, watched by threads."""

    def __init__(self, client: Client, index: int, count: int):
        self._client, self._index, self._count = client, index, count
        self._left, self._ending, self._agreed = threading.Event(), threading.Lock(), 0
        self.published = False
        _delay_abort()
        works = (self._listen, self._look, self._beat)
        self._threads = [threading.Thread(target=work, name="peers", daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    # ---------------------------------------------------------------------------------------------------- ending

    def publish(self, code: int, sentence: str) -> None:
        """Make the other processes end with an exit code and a sentence; this one has some seconds left."""
        self.published = True
        with contextlib.suppress(Unreachable):
            self._client.set("end/0", json.dumps([code, self._index, sentence]))
        deadline = threading.Timer(_GRACE, self.end, (code, sentence))
        deadline.daemon = True
        deadline.start()

    def end(self, code: int, sentence: str, reachable: bool = True) -> NoReturn:
        """End this process now, without JAX's shutdown barrier; process 0 waits until the others have read why."""
        self._ending.acquire()  # for ever: one thread ends the process
        if sentence:
            with contextlib.suppress(OSError, ValueError):  # a log on a full disk must not keep the process alive
                print(f"error: {sentence}", file=sys.stderr, flush=True)
        with contextlib.suppress(Unreachable):
            if reachable:
                self._client.set(f"gone/{self._index}", "")
            end = time.monotonic() + _GRACE
            while (
                reachable
                and self._index == 0
                and len(self._client.all("gone/")) < self._count
                and time.monotonic() < end
            ):
                time.sleep(0.1)
        locks.abandon()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)

    def leave(self) -> None:
        """Wait until all processes are done, and stop watching them."""
        try:
            self._client.set(f"done/{self._index}", "")
            while len(self._client.all("done/")) < self._count:
                time.sleep(0.05)
        except Unreachable:
            time.sleep(2 * _GRACE)  # a thread has noticed it, too, and ends the process
        self._left.set()
        for thread in self._threads:
            thread.join(_GRACE)
        _delay_abort(False)

    def explain(self, error: Exception) -> None:
        """Wait for the thread to end this process if another one is lost, which an error of JAX may be a sign of."""
        if isinstance(error, RuntimeError | ValueError):
            time.sleep(_SILENT + 5)

    # ---------------------------------------------------------------------------------------------------- watching

    def _listen(self) -> None:
        """End this process when another one has failed. Requests are short: no thread may be in one at the end."""
        while not self._left.wait(0.5):
            try:
                ended = self._client.all("end/")
            except Unreachable:
                continue
            if ended:
                code, index, sentence = json.loads(ended["0"])
                if index != self._index:
                    self._left.wait(0.5)  # a process that makes the same mistake says it itself
                    self.end(code, f"process {index}: {sentence}")
                return

    def _look(self) -> None:
        """End this process when process 0 is lost: JAX answers no request then, and aborts six seconds later."""
        missed = 0
        while self._index and not self._left.wait(max(1.0, self._count / 256)):
            missed = 0 if self._client.is_there() else missed + 1
            if missed > 1 and not self._left.is_set():
                lost = f"process 0, which coordinates the run, was killed, or its machine is lost; {_AGAIN}"
                self.end(LOST, lost, reachable=False)

    def _beat(self) -> None:
        """Show a sign of life each second; process 0 ends the run when another one shows none."""
        beats, seen = 0, {}
        while not self._left.wait(1.0):
            beats += 1
            with contextlib.suppress(Unreachable):
                self._client.set(f"beat/{self._index}", str(beats), overwrite=True)
                now = self._client.all("beat/") if self._index == 0 else {}
                done = self._client.all("done/") if self._index == 0 else {}
                for index, beat in now.items():
                    if seen.get(index, ("",))[0] != beat:
                        seen[index] = beat, time.monotonic()
                    elif time.monotonic() - seen[index][1] > _SILENT and index not in done:
                        sentence = f"process {index} was killed, or its machine is lost or hangs; {_AGAIN}"
                        self.publish(LOST, sentence)
                        self.end(LOST, sentence)

    # ---------------------------------------------------------------------------------------------------- agreement

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Raise InputError unless all processes call this with the same JSON terms."""
        self._agreed += 1
        folder = f"facts/{self._agreed}"
        mine = untrusted.recorded(facts, default=str)
        try:
            self._client.set(f"{folder}/{self._index}", json.dumps(mine))
            for index in (index for index in range(self._count) if index != self._index):
                theirs = json.loads(self._client.wait_for(f"{folder}/{index}", _AGREE))
                if found := first_differences(mine, theirs, ("is", f"in process {index} is")):
                    raise InputError(
                        f"process {index} does not work with the same as process {self._index}: {found};"
                        " start all processes with the same command, data and weights"
                    )
        except (Unreachable, TimeoutError) as error:
            raise InputError(f"the processes could not compare their settings: {error}; start all of them") from error


_peers: Peers | None = None


def watch() -> None:
    """Begin to watch the other processes, if there are any, after JAX has joined them."""
    global _peers
    client, address, index, count = compat.coordinator()
    if client is not None and count > 1:
        _peers = Peers(Client(client, address), index, count)


def agree(facts: Callable[[], Mapping[str, Any]]) -> None:
    """Raise InputError in every process if they do not all work with the same facts.

    Args:
      facts: returns them in JSON terms; not called where the process runs alone.
    """
    if _peers is not None:
        _peers.agree(facts())


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Publish an error inside the `with` statement to the other processes at once, so that they end, too."""
    try:
        yield
    except InputError as error:
        if _peers is not None:
            _peers.publish(2, str(error))
        raise
    except KeyboardInterrupt:
        if _peers is not None:
            _peers.publish(130, "interrupted")
        raise
    except Exception as error:
        if _peers is not None and not _peers.published:
            _peers.explain(error)
            _peers.publish(1, f"{type(error).__name__}, see its own output")
        raise


@contextlib.contextmanager
def together() -> Iterator[None]:
    """End the program inside the `with` statement with the other processes, not before or after them."""
    try:
        with told():
            yield
    except InputError as error:
        if _peers is not None:
            _peers.end(2, str(error))
        raise
    except KeyboardInterrupt:
        if _peers is not None:
            _peers.end(130, "interrupted")
        raise
    except Exception:
        if _peers is not None:
            traceback.print_exc()
            _peers.end(1, "")
        raise
    except SystemExit:
        if _peers is not None:
            _peers.leave()
        raise
    if _peers is not None:
        _peers.leave()


@contextlib.contextmanager
def joining(name: str, seconds: float) -> Iterator[None]:
    """Explain why the program ends, if the others have not come by then; JAX would abort after these seconds."""
    missing = f"the other processes did not come to {name} within {seconds:g} s; start all of them (docs/clusters.md)"

    def end() -> NoReturn:
        print(f"error: {missing}", file=sys.stderr, flush=True)
        os._exit(LOST)

    timer = threading.Timer(seconds + 1, end)
    timer.daemon = True
    _delay_abort()
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        _delay_abort(False)


def _delay_abort(yes: bool = True) -> None:
    """Let JAX's abort of a process without coordinator wait six seconds, in which the thread says why it ends.

    JAX offers no other way: its callback for this cannot be a Python function. The handler is the C library's `sleep`,
    which gets the signal's number, 6, as its argument.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "sleep"):
        library.signal.argtypes, library.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
        library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p) if yes else None)
