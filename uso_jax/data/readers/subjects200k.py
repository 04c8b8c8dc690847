# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Subjects200K: parquet rows with two views of a subject side by side in one image, rated by a language model.

    image {bytes}, collection, quality_assessment {compositeStructure, objectConsistency, imageQuality: 0 to 5},
    description {item, description_0, description_1, category, description_valid}

Each row yields two triplets, one in each direction. Random access decodes a whole row group per row: convert the set
once (uso-curate convert) before training on it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from uso_jax.common.errors import InputError
from uso_jax.data.readers.source import Item, LeftOut, both_ways
from uso_jax.data.storage import archives, places
from uso_jax.data.storage.places import Place

QUALITIES = ("compositeStructure", "objectConsistency", "imageQuality")
_COLUMNS = ("collection", "quality_assessment", "description")


def read_subjects200k(
    path: str | Path, min_quality: int = 5, collection: str = "", both: bool = True
) -> Iterator[Item | LeftOut]:
    """Read one parquet file, or all in a folder.

    Args:
      path: the file or folder.
      min_quality: minimum of the three quality ratings; the authors of the data set train on 5.
      collection: read only this one, such as "collection_2"; "" means all.
      both: also yield the triplet from the right view to the left.
    """
    unused: list[str] = []
    files = archives.list_files(str(path), ".parquet", unused)
    yield from (LeftOut("not a .parquet file", name) for name in unused)
    for file in files:
        name, number = file.rpartition("/")[2].removesuffix(".parquet"), 0
        table = places.open_table(file)
        missing = [column for column in ("image", *_COLUMNS) if column not in table.schema_arrow.names]
        if missing:
            raise InputError(f"{file} has no column {', '.join(missing)}: it is not a Subjects200K file.")
        for batch in places.table_batches(table, list(_COLUMNS), file):
            for row in batch.to_pylist():
                image = Place(file, "image", row=number)
                yield from _pair(row, image, f"{name}/{number}", min_quality, collection, both)
                number += 1


def _pair(
    row: Mapping[str, Any], image: Place, key: str, min_quality: int, collection: str, both: bool
) -> Iterator[Item | LeftOut]:
    if collection and row["collection"] != collection:
        yield LeftOut(f"not in {collection}")
        return
    quality, described = (row[name] if isinstance(row[name], dict) else {} for name in _COLUMNS[1:])
    scores = [quality.get(name) for name in QUALITIES]
    if not all(isinstance(score, int) for score in scores):
        yield LeftOut("no quality assessment")
        return
    if min(scores) < min_quality:
        yield LeftOut(f"quality below {min_quality}")
        return
    prompts = [described.get(f"description_{side}") for side in (0, 1)]
    if described.get("description_valid") is False or not all(isinstance(text, str) and text for text in prompts):
        yield LeftOut("invalid descriptions")
        return
    views = [Place(image.file, image.member, row=image.row, view=side) for side in (0, 1)]
    yield from both_ways(key, views, prompts, {n: described.get(n) for n in ("item", "category")}, both)
