# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Processes that cost little more than what they do: a fork server imports everything once, before JAX starts."""

import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile

import tiny

import uso_jax.training.fit  # noqa: F401 - for the fork server

_CONTEXT = multiprocessing.get_context("forkserver")


def process(target, args: tuple) -> multiprocessing.Process:
    """Make a process that calls a function of a module; it is not started."""
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # for the fork server
    _CONTEXT.set_forkserver_preload(["clusters", "slow_imports"])
    return _CONTEXT.Process(target=target, args=args)


def start(argv: tuple[str, ...], stdout: pathlib.Path, stderr: pathlib.Path, cache: pathlib.Path | None = None):
    """Start `python *argv` from the repository's root, without starting Python; `cache` keeps compiled programs."""
    child = process(_command, (argv, stdout, stderr, cache))
    child.start()
    return child


def command(*argv: str) -> subprocess.CompletedProcess:
    """Run `python *argv` from the repository's root, without starting Python; give its exit code and what it says."""
    with tempfile.TemporaryDirectory() as folder:
        said = [pathlib.Path(folder, name) for name in ("stdout", "stderr")]
        child = start(argv, *said)
        child.join(300)
        child.kill()
        child.join()
        return subprocess.CompletedProcess(argv, child.exitcode, *(path.read_text() for path in said))


def redirect(stdout: pathlib.Path, stderr: pathlib.Path) -> None:
    """Let this process say everything into files."""
    for number, path in enumerate((stdout, stderr), 1):
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, number)
        os.close(log)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.__stderr__ = sys.stderr


def _command(
    argv: tuple[str, ...], stdout: pathlib.Path, stderr: pathlib.Path, cache: pathlib.Path | None = None
) -> None:
    redirect(stdout, stderr)
    if cache is not None:
        next(tiny.compile_cheaply(cache))
    os.environ["GLIBC_TUNABLES"] = ""  # else a command that wants them starts Python again
    os.chdir(tiny.ROOT)
    sys.argv = list(argv)
    runpy.run_path(argv[0], run_name="__main__")
