# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Read and encode the triplets of a TFDS data set with Apache Beam (`pip install "uso_jax[beam]"`).

Every worker opens the source itself, so the pipeline carries only its description. Examples keep the order of the
source. Image sizes and the errors of unreadable triplets are collected in side outputs.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np

from uso_jax.common import atomic_files, untrusted
from uso_jax.common.errors import BadExample
from uso_jax.data.sources import open_source
from uso_jax.data.tfds import records

_AT_ONCE = 64  # triplets per work item


def read_split(split: str, spec: Mapping[str, Any], total: int, folder: Path) -> beam.PTransform:
    """Return the transform that yields the (index, example) pairs of a split.

    Args:
      split: name of the split.
      spec: description of the source, see `uso_jax.data.sources.open_source`.
      total: number of triplets to read.
      folder: where image sizes and the errors of unreadable triplets are written.
    """

    @beam.ptransform_fn
    def read(pipeline):
        starts = pipeline | f"{split}_starts" >> beam.Create(range(0, total, _AT_ONCE))
        spread = starts | f"{split}_spread" >> beam.Reshuffle()
        found = spread | f"{split}_read" >> beam.ParDo(_Read(dict(spec), total)).with_outputs(
            "sizes", "lost", main="examples"
        )
        for name, save in (("sizes", _save_sizes), ("lost", _save_lost)):
            everything = found[name] | f"{split}_{name}" >> beam.combiners.ToList()
            _ = everything | f"{split}_save_{name}" >> beam.Map(save, str(folder), split)
        return found.examples

    return read()


def pop_lost(folder: Path, split: str) -> list[str]:
    """Return the errors of the unreadable triplets of a split, and delete their file."""
    path = _lost_file(folder, split)
    reasons = untrusted.json(path, list[str], remedy="prepare the data set again")
    path.unlink()
    return reasons


class _Read(beam.DoFn):
    """Read and encode a range of a source."""

    def __init__(self, spec: Mapping[str, Any], total: int):
        self.spec, self.total = spec, total

    def setup(self):
        self.source = open_source(self.spec)

    def process(self, start):
        for index in range(start, min(start + _AT_ONCE, self.total)):
            try:
                example, size = records.encode_example(self.source, index)
            except BadExample as error:
                yield beam.pvalue.TaggedOutput("lost", (index, str(error)))
                continue
            yield beam.pvalue.TaggedOutput("sizes", (index, *map(int, size)))
            yield index, example


def _save_sizes(sizes: Sequence[tuple[int, ...]], folder: str, split: str) -> None:
    rows = np.asarray(sorted(sizes), np.int32).reshape(-1, 5)
    np.save(records.sizes_file(Path(folder), split), rows[:, 1:])


def _save_lost(reasons: Sequence[tuple[int, str]], folder: str, split: str) -> None:
    atomic_files.write_file(_lost_file(Path(folder), split), json.dumps([reason for _, reason in sorted(reasons)]))


def _lost_file(folder: Path, split: str) -> Path:
    return folder / f"lost_{split}.json"
