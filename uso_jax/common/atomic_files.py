# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Files that are there as a whole or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from uso_jax.common.errors import InputError


def write_file(path: pathlib.Path, data: bytes | str) -> None:
    """Write a file beside its place, then move it there; after an error what was there is untouched.

    Raises:
      OSError: it could not be written.
    """
    with beside(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def beside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Give a path beside a file's place to write to, which is moved there unless an error comes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def explained(what: pathlib.Path | str, remedy: str) -> Iterator[None]:
    """Make of an OSError the user's sentence: what cannot be written, why, and what to do."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {what}: {error.strerror}; {remedy}") from error
