# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`python scripts/train.py` as one or several processes of this machine, which can be disturbed."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import tiny
import xla_flags

_LIMIT = ("sh", "-c", 'ulimit -f "$0" && exec "$@"')
_SECONDS = 600  # after which a test gives up on a process


@dataclass(frozen=True)
class Process:
    """How one process differs from the others."""

    flags: Sequence[str] = ()
    folder: pathlib.Path = tiny.ROOT
    late: float = 0.0  # seconds
    largest_file: int = 0  # blocks of 512 bytes that it may write to one file, as on a full disk; 0: any number


@dataclass
class ScriptRun:
    """The processes of one training."""

    workdir: pathlib.Path
    cache: pathlib.Path
    processes: Sequence[Process] = (Process(),)
    flags: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)
    pause: float = 0.0  # seconds after each step, so that there is time to disturb it

    def __post_init__(self):
        self.workdir.parent.mkdir(parents=True, exist_ok=True)
        self.running: list[subprocess.Popen] = []
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        number = len(self.logs())
        for index, process in enumerate(self.processes):
            time.sleep(process.late)
            several = ["--coordinator", address, "--num_processes", len(self.processes), "--process_id", index]
            command = [
                *((*_LIMIT, str(process.largest_file)) if process.largest_file else ()),
                *(sys.executable, str(tiny.ROOT / "scripts" / "train.py")),
                f"--config={tiny.ROOT / 'tests' / 'helpers' / 'tiny_run.py'}",
                *(f"--workdir={self.workdir}", *self.flags, *process.flags),
                *(map(str, several) if len(self.processes) > 1 else ()),
            ]
            with self._log(number + index).open("wb") as log:
                self.running.append(
                    subprocess.Popen(
                        command,
                        cwd=process.folder,
                        env=self._environment() | _uncached(process),
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        self._first, self._start = number, time.monotonic()

    def _environment(self) -> dict[str, str]:
        paths = os.pathsep.join([str(tiny.ROOT / "tests" / "helpers" / "slow_steps"), str(tiny.ROOT)])
        return {
            **os.environ,
            "XLA_FLAGS": xla_flags.flags(),
            "PYTHONPATH": paths,
            "TINY_PAUSE": str(self.pause),
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_DEFAULT_MATMUL_PRECISION": "highest",
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            **self.environment,
        }

    def _log(self, number: int) -> pathlib.Path:
        return self.workdir.with_name(f"{self.workdir.name}.{number}.log")

    def logs(self) -> list[pathlib.Path]:
        """Return the logs of all attempts in this directory."""
        return sorted(self.workdir.parent.glob(f"{self.workdir.name}.*.log"))

    def log(self, index: int = 0) -> str:
        """Return what a process of this attempt has said."""
        return self._log(self._first + index).read_text(errors="replace")

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints."""
        found = (self.workdir / "checkpoints").glob("*")
        return sorted(int(path.name) for path in found if path.name.isdecimal())

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds or a process has ended; the clock of `codes` starts then."""
        end = time.monotonic() + _SECONDS
        while not condition() and all(process.poll() is None for process in self.running):
            assert time.monotonic() < end, self.log()
            time.sleep(0.02)
        self._start = time.monotonic()

    def reach(self, step: int) -> None:
        """Wait until there is a checkpoint of this step or a later one."""
        self.wait_for(lambda: self.steps() and self.steps()[-1] >= step)

    def kill(self, index: int = 0, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a process a signal."""
        with contextlib.suppress(ProcessLookupError):
            self.running[index].send_signal(how)

    def codes(self) -> tuple[list[int], float]:
        """Wait for all processes; return their exit codes and the seconds until the last one ended."""
        try:
            for process in self.running:
                process.wait(max(_SECONDS - (time.monotonic() - self._start), 0))
            return [process.returncode for process in self.running], time.monotonic() - self._start
        finally:
            for process in self.running:
                process.kill()
                process.wait()


def _uncached(process: Process) -> dict[str, str]:
    """Return the environment of a process that could not write the compiled programs either."""
    return {"JAX_ENABLE_COMPILATION_CACHE": "false"} if process.largest_file else {}
