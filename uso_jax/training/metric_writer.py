# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics of a run: metrics.jsonl for programs, loggers for people."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TypedDict

import jax

from uso_jax.training import log_file
from uso_jax.training.loggers import LOGGERS, Identity


class _Line(TypedDict):
    step: int


class Metrics:
    """Writes metrics keyed by global step. Only process 0 writes; other processes are no-ops.

    A resumed run removes what an earlier attempt wrote past the checkpoint.
    """

    def __init__(self, identity: Identity, names: Sequence[str]):
        """Open the files and the loggers with these names; `identity.resume_step` is the step of the checkpoint."""
        self._identity, self._names = identity, names
        self._file, self._loggers = None, []
        if jax.process_index() == 0:
            self._open()

    def _open(self) -> None:
        path, resume_step = self._identity.workdir / "metrics.jsonl", self._identity.resume_step
        log_file.reopen(path, _Line, lambda line: line["step"] <= resume_step)
        self._file = path.open("ab")
        self._loggers = [LOGGERS[name](self._identity) for name in self._names]

    def write(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        """Write the values of one global step of a stage."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, "stage": stage, **values}).encode() + b"\n")
            self._file.flush()
        self.board(step, stage, values)

    def board(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Show values in the loggers only."""
        for logger in self._loggers:
            logger.scalars(step, group, {name: float(value) for name, value in values.items()})

    def image(self, step: int, name: str, path: pathlib.Path) -> None:
        """Show an image file in the loggers."""
        for logger in self._loggers:
            logger.image(step, f"samples/{name}", path)

    def rewind(self, step: int) -> None:
        """Remove what was written past a global step."""
        if self._file is not None:
            self.close()
            self._identity = dataclasses.replace(self._identity, resume_step=step)
            self._open()

    def close(self) -> None:
        """Write what is buffered. A full disk is ignored here, as `write` has already raised on it."""
        for part in (self._file, *self._loggers):
            if part is not None:
                with contextlib.suppress(OSError):
                    part.close()
