# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""SynCD: sets of images of one subject, with prompts and the scores of two filters.

    FOLDER/.../*metadata_with_scores.json, or *metadata.json without scores:
        [{"filenames": ["a.jpg", ...], "prompts": ["...", ...], "dino_scores": [[1, 0.8], [0.8, 1]],
          "aesthetics_scores": {"a": 6.1, ...}}, ...]

File names are relative to the directory of the metadata. Every ordered pair of images of a set that passes the score
thresholds is a triplet.
"""

import math
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from uso_jax.common.errors import InputError
from uso_jax.data.readers.json_list import read_items
from uso_jax.data.readers.source import Item, LeftOut
from uso_jax.data.storage import archives, urls
from uso_jax.data.storage.places import Place


def read_syncd(
    path: str | Path,
    min_aesthetics: float | int = 0.0,
    min_dino: float | int = 0.0,
    max_dino: float | int = 0.98,
) -> Iterator[Item | LeftOut]:
    """Read one metadata file, or all in a folder.

    Args:
      path: the file or folder.
      min_aesthetics: least aesthetics score of both images.
      min_dino: least DINO similarity of a pair; less similar images may show different subjects.
      max_dino: largest DINO similarity of a pair; more similar images are near-copies.
    """
    for file in _files(str(path)):
        name = posixpath.splitext(file.rpartition("/")[2])[0]
        for number, (where, entry) in enumerate(read_items(file, nan=True)):
            if isinstance(reason := _checked(entry), str):
                yield LeftOut(reason)
                continue
            images = [Place(urls.join(urls.parent(file), name, where)) for name in entry["filenames"]]
            likeness = entry.get("dino_scores")
            good = [_aesthetics(entry, name) >= min_aesthetics for name in entry["filenames"]]
            pairs = [(i, j) for i in range(len(images)) for j in range(len(images)) if i != j and good[i] and good[j]]
            if likeness is not None:
                pairs = [(i, j) for i, j in pairs if min_dino <= likeness[i][j] <= max_dino]
            if not pairs:
                yield LeftOut("no pair of images passes the score thresholds")
            for content, target in pairs:
                yield Item(
                    key=f"{name}/{number}/{content}-{target}",
                    prompt=entry["prompts"][target],
                    content=images[content],
                    target=images[target],
                    meta={} if likeness is None else {"dino": likeness[content][target]},
                )


def _files(path: str) -> list[str]:
    if path.lower().endswith((".json", ".jsonl")):
        return [path]
    found = [place.file for name, place in archives.list_members(path).items() if name.endswith(".json")]
    scored = [file for file in found if file.endswith("metadata_with_scores.json")]
    files = scored or [file for file in found if file.endswith("metadata.json")]
    if not files:
        raise InputError(f"{path} contains no *metadata.json: check the path.")
    return files


def _checked(entry: Any) -> str | None:
    """Return why a set is skipped, or None."""
    if not isinstance(entry, Mapping):
        return "not a JSON object"
    names, prompts, likeness = (entry.get(name) for name in ("filenames", "prompts", "dino_scores"))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return "no file names"
    if (
        not isinstance(prompts, list)
        or len(prompts) != len(names)
        or not all(isinstance(p, str) and p for p in prompts)
    ):
        return "prompts do not match the images"
    rows = likeness if isinstance(likeness, list) else []
    square = [row for row in rows if isinstance(row, list) and len(row) == len(names) and all(map(_is_score, row))]
    if likeness is not None and not len(square) == len(rows) == len(names):
        return "DINO scores do not match the images"
    scores = entry.get("aesthetics_scores")
    if scores is not None and not (isinstance(scores, Mapping) and all(map(_is_score, scores.values()))):
        return "aesthetics scores are not numbers"
    return None


def _aesthetics(entry: Mapping[str, Any], name: str) -> float | int:
    """Return the score of an image: inf if the set has no scores, -inf if only this image has none."""
    scores = entry.get("aesthetics_scores")
    return math.inf if scores is None else scores.get(posixpath.splitext(posixpath.basename(name))[0], -math.inf)


def _is_score(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
