# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Atomic file writes: a file is replaced completely or not at all."""

import contextlib
import errno
import glob
import os
import pathlib
from collections.abc import Iterator

from uso_jax.common.errors import InputError


def write_file(path: pathlib.Path, data: bytes | str) -> None:
    """Write a file atomically; if this fails, an existing file is unchanged.

    Raises:
      OSError: the file cannot be written.
    """
    with beside(path) as temporary:
        # A name of a file that is not UTF-8 must not lose the rest.
        temporary.write_bytes(data.encode(errors="backslashreplace") if isinstance(data, str) else data)


@contextlib.contextmanager
def beside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary path in the same directory; on success, it is renamed to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(directory: pathlib.Path, name: str = "") -> None:
    """Delete what killed writers left of files in a directory or in its folders, or of one file.

    The caller is the only writer. Folders with a lock file are left alone, as are files of living processes.
    """
    folders = [directory]
    if not name:
        folders += [path for path in directory.iterdir() if path.is_dir() and not (path / ".lock").exists()]
    for folder in folders:
        for path in folder.glob(f".{glob.escape(name) if name else '*'}.*.tmp"):
            pid = path.name.split(".")[-2]
            if pid.isdecimal() and not _lives(int(pid)):
                path.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def probe(path: pathlib.Path) -> None:
    """Try to write beside a path, before slow work whose result goes there; nothing stays, no folder either.

    Raises:
      OSError: the place is read-only, the name too long, a folder on the way is a file, and so on.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a directory", str(path))
    made = [folder for folder in path.absolute().parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (temporary := path.with_name(f".{path.name}.{os.getpid()}.tmp")).open("xb"):
            temporary.unlink()
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def explained(what: pathlib.Path | str, remedy: str) -> Iterator[None]:
    """Convert an OSError inside the block to an InputError that names `what`, the reason and the `remedy`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {what}: {error.strerror}; {remedy}") from error
