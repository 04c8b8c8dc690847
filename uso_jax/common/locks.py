# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One writer for each directory: a lock file names the host and the process that writes.

A lock is a lease of `filelock`: its file is created atomically and touched every `LEASE / 3` seconds. The lock of a
process of this host that has ended is taken over at once. Another host, or another container, cannot see whether the
process runs: its lock is taken over when it has not been touched for `LEASE` seconds, and otherwise it is refused.

This needs a file system on which exclusive creation is atomic and visible everywhere: local ones, NFS 3 and 4, Lustre,
Filestore. A bucket that is mounted, as by gcsfuse, does not promise it; there, two hosts may both get the lock. A host
that was suspended for longer than `LEASE` may lose its lock; `Lock.check` finds that out.
"""

import contextlib
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import filelock

from uso_jax.common import atomic_files, compat
from uso_jax.common.errors import InputError

LEASE = 60.0  # seconds without a sign of life after which another host may take a lock over
_SOON = 0.3  # seconds in which the lock of a process that has ended is taken over
_DAMAGED = 3.0  # the same for a lock file that names no process, as one that is just being written does not either


class Lock:
    """A lock that is held."""

    def __init__(self, lease: filelock.SoftFileLease, directory: pathlib.Path):
        self._lease, self._directory = lease, directory

    def check(self) -> None:
        """Raise InputError if another process has taken the lock over; cheap enough for every step."""
        if self._lease.compromise is None:
            return
        owner = self._lease.owner
        if owner is not None and owner.token != self._lease.token:
            raise InputError(
                f"{_process(owner)} has taken over {self._directory}, as this process showed no sign of life for"
                f" {LEASE:g} s; let that one go on, or stop it and start this one again"
            )


class Writer(NamedTuple):
    """The process that holds a lock; `host` is "" for this host."""

    pid: int
    host: str


def writer(directory: pathlib.Path) -> Writer | None:
    """Return the process that writes a directory as a whole, or None if none does; nothing is changed.

    Another host's process counts while its lock was touched within the last `LEASE` seconds.
    """
    path = directory / ".lock"
    if not (touched := _modified(path)):
        return None
    owner = filelock.SoftFileLease(path, lease_duration=LEASE, thread_local=False).owner
    if owner is None or compat.lock_is_stale(owner):
        return None
    if owner.hostname == compat.lock_host():
        return Writer(owner.pid, "")
    return Writer(owner.pid, _host(owner)) if time.time() - touched / 1e9 <= LEASE else None


@contextlib.contextmanager
def hold(directory: pathlib.Path | str, name: str = "", *, share: tuple[int, int] = (0, 1)) -> Iterator[Lock]:
    """Be the only writer of a directory, which is created, inside the `with` statement.

    Args:
      directory: what is locked.
      name: of a file or folder in it that alone is locked.
      share: (index, count) of a process that writes its share of the directory; others write the other shares.

    Raises:
      InputError: another process writes there, or the lock cannot be written.
    """
    directory = pathlib.Path(directory)
    prefix = f".{name}." if name else "."
    whole = directory / f"{prefix}lock"
    own = whole if share[1] == 1 else directory / f"{prefix}{share[0]}-of-{share[1]}.lock"
    with contextlib.ExitStack() as stack:
        try:
            made = [path for path in (directory, *directory.absolute().parents) if not path.exists()]
            directory.mkdir(parents=True, exist_ok=True)
            stack.callback(_remove_empty, made)
            lock = stack.enter_context(_acquired(own, directory, name))
            others = sorted({whole, *directory.glob(f"{prefix}*-of-*.lock")} - {own})
            for other in others:
                if not (share[1] > 1 and other.name.endswith(f"-of-{share[1]}.lock")) and other.exists():
                    with _acquired(other, directory, name):  # it is free, or of a process that has ended
                        pass
            if share[1] == 1:
                atomic_files.remove_leftovers(directory, name)
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"cannot write to {directory}: {reason}; choose another directory") from error
        yield lock


@contextlib.contextmanager
def _acquired(path: pathlib.Path, directory: pathlib.Path, name: str) -> Iterator[Lock]:
    lease = filelock.SoftFileLease(path, lease_duration=LEASE, thread_local=False)
    try:
        lease.acquire(timeout=_SOON, poll_interval=_SOON / 6)
    except filelock.Timeout:
        _wait(lease, path, directory / name)
    _held.add(lease)
    try:
        yield Lock(lease, directory)
    finally:
        _held.discard(lease)
        # The directory may have vanished, and must not hide the error that is on its way.
        with contextlib.suppress(OSError):
            lease.release()


_held: set[filelock.SoftFileLease] = set()


def abandon() -> None:
    """Release all locks of this process, which is about to end without leaving its `with` statements."""
    for lease in list(_held):
        with contextlib.suppress(OSError, RuntimeError):
            lease.release()


def _wait(lease: filelock.SoftFileLease, path: pathlib.Path, what: pathlib.Path) -> None:
    """Acquire a lock whose owner may no longer live, or raise InputError as soon as it is known to live."""
    owner = lease.owner
    writer = _process(owner) if owner is not None else "another process"
    refused = InputError(
        f"{what} is being written by {writer}; wait until it ends, or choose another place."
        f" If no such process runs, delete {path}"
    )
    if owner is None:
        seconds = _DAMAGED
    elif owner.hostname == compat.lock_host():
        raise refused
    else:
        seconds = LEASE + 5
        print(
            f"{what} is locked by {writer}; waiting up to {seconds:g} s for a sign of life", file=sys.stderr, flush=True
        )
    touched = _modified(path)
    try:
        lease.acquire(timeout=seconds, poll_interval=0.5, cancel_check=lambda: _modified(path) not in (touched, 0))
    except (filelock.Timeout, filelock.LeaseSettingsMismatch):
        raise refused from None


def _process(owner: filelock.OwnerRecord) -> str:
    return f"process {owner.pid} on {_host(owner)}"


def _host(owner: filelock.OwnerRecord) -> str:
    return owner.hostname.partition("?")[0] or "an unnamed host"


def _modified(path: pathlib.Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0  # released


def _remove_empty(made: list[pathlib.Path]) -> None:
    for path in made:
        with contextlib.suppress(OSError):
            os.rmdir(path)
