# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Logs of a run: JSON lines that it appends to, and reads back when it continues, whatever a crash left in them."""

import json
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from uso_jax.common import atomic_files, untrusted
from uso_jax.common.errors import InputError


def reopen(path: pathlib.Path, schema: type, keep: Callable[[Mapping[str, Any]], bool] = lambda line: True) -> list:
    """Return the values of a log's lines that are to be kept, and remove all other lines from the file.

    A torn last line, which every kill may leave, is dropped. Other damage, such as the NULs that a power failure
    leaves, is moved to a file beside the log, and stderr says so. The file is replaced completely or not at all, and
    not touched if nothing changes.

    Args:
      path: the log; it need not exist.
      schema: annotation of a line.
      keep: whether a line is to be kept.

    Raises:
      OSError: the file cannot be read or replaced.
    """
    if path.is_dir() or (path.exists() and not path.is_file()):
        _move_aside(path)
    data = path.read_bytes() if path.exists() else b""
    *lines, torn = data.split(b"\n")
    values, kept, damaged = [], [], []
    for line in lines:
        try:
            value = untrusted.json(line, schema, str(path), nan=True)
        except InputError:
            damaged.append(line)
            continue
        if keep(value):
            values.append(value)
            kept.append(line)
    if damaged := [line for line in damaged if line.strip()]:
        aside = path.with_name(f"{path.name}.damaged")
        with aside.open("ab") as file:
            file.write(b"".join(line + b"\n" for line in damaged))
        print(f"{len(damaged)} damaged lines of {path} are moved to {aside}", file=sys.stderr, flush=True)
    if torn or len(kept) < len(lines):
        atomic_files.write_file(path, b"".join(line + b"\n" for line in kept))
    return values


def append(path: pathlib.Path, line: Mapping[str, Any]) -> None:
    """Append a line.

    Raises:
      OSError: the file cannot be written.
    """
    with path.open("ab") as file:
        file.write(json.dumps(line).encode() + b"\n")


def _move_aside(path: pathlib.Path) -> None:
    aside = path.with_name(f"{path.name}.damaged.{time.time_ns()}")
    path.rename(aside)
    print(f"{path} is not a file; it is moved to {aside}", file=sys.stderr, flush=True)
