# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Trainings in processes of the commands' own: planned, started, stopped, continued and exported.

A training is `uso-train` with the arguments that a person would type. It outlives the app; its directory's lock says
which process it is, so another app, or one that was started again, finds it.
"""

import contextlib
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

from uso_jax.app.run_view import LOG, RunView, is_ending, read_run
from uso_jax.app.training_folder import TrainingFolder
from uso_jax.app.training_settings import TrainingSettings, check_arguments
from uso_jax.common import locks, run_file, untrusted
from uso_jax.common.errors import InputError

FORMATS = {"uso": "USO", "comfy": "ComfyUI", "diffusers": "diffusers"}
ADAPTER = "adapter"  # folder of exported files in a run's directory
_SECONDS = 900  # that a plan or an export may take
_SOURCE = pathlib.Path(__file__).parents[2]  # the checkout, or where the package is installed
_LOG_INTERVAL = "2"  # seconds between lines of progress


class Trainer:
    """The trainings of one folder, one at a time.

    Args:
      folder: where commands run.
      refusal: why nothing can be started here; "": it can.
    """

    def __init__(self, folder: TrainingFolder, refusal: str = ""):
        self.folder, self.refusal = folder, refusal
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None  # the last one that this app started
        self._name = ""  # of its run
        self._asked = ""  # the run that was asked to stop

    def plan(self, settings: TrainingSettings) -> list[dict[str, str]]:
        """Return what uso-doctor finds: "subject", "state", "text" and "remedy" of each finding.

        Raises:
          InputError: a setting cannot be, or the machine cannot be examined.
        """
        self._check_free_device()
        arguments = _without(settings.arguments(self.folder), "--workdir")
        done = self._finish(_command("doctor"), [*arguments, "--folder", "runs", "--json_lines"])
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if not lines:
            raise InputError(_last_error(done.stderr) or f"uso-doctor ended with exit code {done.returncode}")
        return [untrusted.json(line, dict[str, str], "uso-doctor's finding") for line in lines]

    def start(self, settings: TrainingSettings) -> str:
        """Start a run, or continue the one of this name, and return its name.

        Raises:
          InputError: a setting cannot be, a training runs already, or the directory cannot be written.
        """
        arguments = settings.arguments(self.folder)
        name = arguments[arguments.index("--workdir") + 1]
        self._start(name, arguments, self.folder.path)
        return name

    def resume(self, name: str) -> None:
        """Continue a run with the command that started it.

        Raises:
          InputError: the command is unknown, or one that the page does not run; or see `start`.
        """
        workdir = self.folder.workdir(name)
        found = run_file.read(workdir)
        if found is None:
            raise InputError(f"{name} does not say how it was started; continue it with its own command")
        check_arguments(found["arguments"])
        origin = pathlib.Path(found["folder"])
        given = _value(found["arguments"], "--workdir")
        if not origin.is_dir() or given is None or (origin / given).resolve() != workdir:
            raise InputError(f"{name} was moved since it was started; continue it with its own command, with --workdir")
        self._start(name, found["arguments"], origin)

    def stop(self, name: str) -> None:
        """Ask a run to end as Ctrl-C does: after the step under way, and a save.

        Raises:
          InputError: it does not run, or on another machine.
        """
        writer = self.writer(name)
        if writer is None:
            raise InputError(f"{name} does not run")
        if writer.host:
            raise InputError(f"{name} runs on {writer.host}; stop it there")
        # A second Ctrl-C would end it without a save.
        if self._asked != name and not is_ending(self.folder.workdir(name)):
            self._asked = name
            with contextlib.suppress(ProcessLookupError):
                os.kill(writer.pid, signal.SIGINT)

    def export(self, name: str, formats: Sequence[str]) -> list[pathlib.Path]:
        """Write a run's adapter from its last checkpoint, in formats of `FORMATS`, and return the files.

        Raises:
          InputError: the run has no checkpoint, a format is unknown, or a file cannot be written.
        """
        workdir = self.folder.workdir(name)
        if not formats or not set(formats) <= FORMATS.keys():
            raise InputError(f"choose formats among {', '.join(FORMATS.values())}")
        for chosen in formats:
            self._finish_well(_converter(), export_arguments(self.folder.name(workdir), chosen))
        return sorted((workdir / ADAPTER).glob("*.safetensors"))

    # ------------------------------------------------------------------------------------------------ processes

    def running(self) -> str:
        """Return the name of the run under way, or ""."""
        if self._is_alive():
            return self._name
        return next((name for name in self.folder.runs() if locks.writer(self.folder.workdir(name))), "")

    def writer(self, name: str) -> locks.Writer | None:
        """Return the process of a run, or None if it does not run."""
        if self._is_alive() and self._name == name:
            return locks.Writer(self._process.pid, "")
        return locks.writer(self.folder.workdir(name))

    def view(self, name: str) -> RunView:
        """Return what a run's directory says of it.

        Raises:
          InputError: there is no such run.
        """
        own = self._process is not None and self._name == name
        return read_run(
            self.folder.workdir(name),
            runs=self.writer(name) is not None,
            code=self._process.poll() if own else None,
        )

    def _is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _start(self, name: str, arguments: Sequence[str], where: pathlib.Path) -> None:
        self._check_free_device()
        workdir = self.folder.workdir(name)
        with self._lock:
            if other := self.running():
                raise InputError(f"{other} is being trained; wait until it ends, or stop it first")
            try:
                workdir.mkdir(parents=True, exist_ok=True)
                with (workdir / LOG).open("ab") as log:
                    log.write(f"$ {shown('uso-train', arguments)}\n".encode(errors="backslashreplace"))
                    log.flush()
                    self._process = subprocess.Popen(
                        [*_command("train"), *arguments], cwd=where, env=_environment(), stdin=subprocess.DEVNULL,
                        stdout=log, stderr=log, start_new_session=True,  # Ctrl-C ends the app alone
                    )  # fmt: skip
            except OSError as error:
                raise InputError(f"cannot start in {workdir}: {error.strerror}; free some space or choose another name"
                                 ) from error  # fmt: skip
            self._name, self._asked = name, ""

    def _check_free_device(self) -> None:
        if self.refusal:
            raise InputError(self.refusal)

    def _finish(self, command: Sequence[str], arguments: Sequence[str]) -> subprocess.CompletedProcess:
        try:
            return subprocess.run(
                [*command, *arguments], cwd=self.folder.path, env=_environment(), stdin=subprocess.DEVNULL,
                capture_output=True, encoding="utf-8", errors="replace", timeout=_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise InputError(f"this took more than {_SECONDS} seconds; use the command line") from error

    def _finish_well(self, command: Sequence[str], arguments: Sequence[str]) -> None:
        done = self._finish(command, arguments)
        if done.returncode:
            raise InputError(_last_error(done.stderr) or f"uso-convert ended with exit code {done.returncode}")


def export_arguments(workdir: str, layout: str) -> list[str]:
    """Return the arguments of uso-convert that write a run's adapter; files of an earlier export are replaced."""
    return ["export", workdir, "--format", layout, "--to", f"{workdir}/{ADAPTER}", "--overwrite"]


def shown(command: str, arguments: Sequence[str]) -> str:
    """Return a command line as a shell takes it."""
    return shlex.join([command, *arguments])


def _command(name: str) -> list[str]:
    """Return the beginning of a command line; the installed `uso-*` need not be on PATH."""
    # -P: a user's folder may hold files that are called like modules.
    return [sys.executable, "-P", "-c", f"from uso_jax.commands import entry_points; entry_points.{name}()"]


def _converter() -> list[str]:
    is_checkout = (_SOURCE / "convert" / "__main__.py").is_file()
    return [sys.executable, "-P", "-m", "convert" if is_checkout else "uso_jax_convert"]


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(_SOURCE), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": _LOG_INTERVAL}


def _without(arguments: Sequence[str], flag: str) -> list[str]:
    place = arguments.index(flag)
    return [*arguments[:place], *arguments[place + 2 :]]


def _value(arguments: Sequence[str], flag: str) -> str | None:
    """Return the last value of a flag, given as `flag value` or `flag=value`."""
    found = None
    for place, argument in enumerate(arguments):
        if argument == flag:
            found = next(iter(arguments[place + 1 :]), None)
        elif argument.startswith(f"{flag}="):
            found = argument.partition("=")[2]
    return found


def _last_error(text: str) -> str:
    """Return the sentence of the last line "error: SENTENCE", or ""."""
    found = [line.removeprefix("error: ") for line in text.splitlines() if line.startswith("error: ")]
    return found[-1] if found else ""
