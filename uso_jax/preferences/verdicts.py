# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""preferences.jsonl, an append-only log of which of two images a person prefers.

    {"id": "9c1f...", "left": KEY, "right": KEY, "better": "left"}     or "right", or "neither": cannot say
    {"undo": "9c1f..."}                                                takes that verdict back

A key is that of uso_jax.data.rollout_store, STAGE/ROUND/NUMBER/DIGEST. Every line is one write at the end of the file,
so several servers may append to it, and a kill loses at most the verdict that was being written: what it leaves is
ended by the next line, and skipped.
"""

import json
import os
import pathlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError

NAME = "preferences.jsonl"
Better = Literal["left", "right", "neither"]


@dataclass(frozen=True)
class Verdict:
    """One choice between two images, by their keys."""

    id: str
    left: str
    right: str
    better: Better

    @property
    def pair(self) -> frozenset[str]:
        """Both keys, in no order."""
        return frozenset((self.left, self.right))


class _Line(TypedDict):
    id: NotRequired[str]
    left: NotRequired[str]
    right: NotRequired[str]
    better: NotRequired[Better]
    undo: NotRequired[str]


class Verdicts:
    """The log of a folder; it is created with the first verdict."""

    def __init__(self, folder: pathlib.Path):
        self.path = folder / NAME

    def add(self, left: str, right: str, better: Better) -> Verdict:
        """Append a verdict; it is on disk when this returns.

        Raises:
          InputError: the file cannot be written.
        """
        verdict = Verdict(secrets.token_hex(8), left, right, better)
        self._append({"id": verdict.id, "left": left, "right": right, "better": better})
        return verdict

    def undo(self, verdict: Verdict) -> None:
        """Take a verdict back.

        Raises:
          InputError: the file cannot be written.
        """
        self._append({"undo": verdict.id})

    def read(self, damaged: Callable[[InputError], object] | None = None) -> list[Verdict]:
        """Return the verdicts that stand, oldest first.

        Args:
          damaged: receives the error of every line that is no verdict, which is skipped; by default nothing does.

        Raises:
          InputError: the file cannot be read or is too large.
        """
        if not self.path.exists():
            return []
        if (size := self.path.stat().st_size) > untrusted.LIMIT:
            raise InputError(f"{self.path} has {size} bytes, the limit is {untrusted.LIMIT}; remove the oldest lines")
        damaged = damaged or (lambda error: None)
        found: dict[str, Verdict] = {}
        for number, line in untrusted.json_lines(self.path, _Line, damaged=damaged):
            if "undo" in line:
                found.pop(line["undo"], None)
            elif {"id", "left", "right", "better"} <= line.keys() and line["left"] != line["right"]:
                found[line["id"]] = Verdict(**line)
            else:
                damaged(InputError(f"{self.path} line {number} is no verdict on two images; remove that line"))
        return list(found.values())

    def _append(self, line: dict[str, str]) -> None:
        try:
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                size = os.fstat(file).st_size
                torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
                os.write(file, (b"\n" if torn else b"") + json.dumps(line).encode() + b"\n")
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}; the verdict is not kept") from error
