# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Atomic file writes: a file is replaced completely or not at all."""

import contextlib
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
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def beside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary path in the same directory; on success, it is renamed to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def explained(what: pathlib.Path | str, remedy: str) -> Iterator[None]:
    """Convert an OSError inside the block to an InputError that names `what`, the reason and the `remedy`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {what}: {error.strerror}; {remedy}") from error
