# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Where a run's numbers go: TensorBoard for people, metrics.jsonl for programs."""

import contextlib
import json
import pathlib

from tensorboardX import SummaryWriter


class Metrics:
    """Write metrics by global step; a resumed run forgets what an earlier attempt wrote past its checkpoint."""

    def __init__(self, workdir: pathlib.Path, resume_step: int):
        self._path = workdir / "metrics.jsonl"
        kept = []
        if self._path.exists():
            lines = self._path.read_text().splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= resume_step]
        self._path.write_text("".join(f"{line}\n" for line in kept))
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1, flush_secs=10)

    def write(self, step: int, stage: str, values: dict[str, float]) -> None:
        """Record one step's values of a stage."""
        self._file.write(json.dumps({"step": step, "stage": stage, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        """Write out what is buffered; what a full disk refuses now, it has refused to `write` before."""
        for part in (self._file, self._board):
            with contextlib.suppress(OSError):
                part.close()
