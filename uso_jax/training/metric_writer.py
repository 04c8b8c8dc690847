# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics of a run: TensorBoard for people, metrics.jsonl for programs."""

import contextlib
import json
import pathlib
from collections.abc import Mapping
from typing import TypedDict

import jax

from uso_jax.common import compat
from uso_jax.training import log_file


class _Line(TypedDict):
    step: int


class Metrics:
    """Writes metrics keyed by global step. Only process 0 writes; other processes are no-ops.

    A resumed run removes what an earlier attempt wrote past the checkpoint.
    """

    def __init__(self, workdir: pathlib.Path, resume_step: int):
        self._workdir, self._path = workdir, workdir / "metrics.jsonl"
        self._parts = None
        if jax.process_index() == 0:
            self._open(resume_step)

    def _open(self, resume_step: int) -> None:
        log_file.reopen(self._path, _Line, lambda line: line["step"] <= resume_step)
        board = compat.summary_writer()(str(self._workdir / "tensorboard"), purge_step=resume_step + 1, flush_secs=10)
        self._parts = self._path.open("ab"), board

    def write(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        """Write the values of one global step of a stage."""
        if self._parts is not None:
            self._parts[0].write(json.dumps({"step": step, "stage": stage, **values}).encode() + b"\n")
            self._parts[0].flush()
        self.board(step, stage, values)

    def board(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Write values to TensorBoard only."""
        if self._parts is not None:
            for name, value in values.items():
                self._parts[1].add_scalar(f"{group}/{name}", value, step)

    def rewind(self, step: int) -> None:
        """Remove what was written past a global step."""
        if self._parts is not None:
            self.close()
            self._open(step)

    def close(self) -> None:
        """Write what is buffered. A full disk is ignored here, as `write` has already raised on it."""
        for part in self._parts or ():
            with contextlib.suppress(OSError):
                part.close()
