# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""SynCD: sets of images of one subject, with prompts and the scores of two filters.

    FOLDER/.../*metadata_with_scores.json, or *metadata.json where there are no scores:
        [{"filenames": ["a.jpg", ...], "prompts": ["...", ...], "dino_scores": [[1, 0.8], [0.8, 1]],
          "aesthetics_scores": {"a": 6.1, ...}}, ...]

File names are relative to the metadata's folder. Every ordered pair of images of a set whose scores pass is a triplet.
"""

import math
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from uso_jax.common.errors import InputError
from uso_jax.data.readers.json_list import load_list
from uso_jax.data.readers.source import Item, LeftOut
from uso_jax.data.storage import archives, urls
from uso_jax.data.storage.places import Place


def read_syncd(
    path: str | Path,
    min_aesthetics: float | int = 0.0,
    min_dino: float | int = 0.0,
    max_dino: float | int = 0.98,
) -> Iterator[Item | LeftOut]:
    """Read a file of metadata, or all of a folder.

    Args:
      path: the file or folder.
      min_aesthetics: of both images.
      min_dino: of the pair's similarity; lower, and they may show different subjects.
      max_dino: higher, and the target is nearly a copy.
    """
    for file in _files(str(path)):
        name = posixpath.splitext(file.rpartition("/")[2])[0]
        for number, entry in enumerate(load_list(file)):
            if isinstance(reason := _checked(entry), str):
                yield LeftOut(reason)
                continue
            where = f"{file}, set {number}"
            images = [Place(urls.join(urls.parent(file), name, where)) for name in entry["filenames"]]
            likeness = entry.get("dino_scores")
            good = [_aesthetics(entry, name) >= min_aesthetics for name in entry["filenames"]]
            pairs = [(i, j) for i in range(len(images)) for j in range(len(images)) if i != j and good[i] and good[j]]
            if likeness is not None:
                pairs = [(i, j) for i, j in pairs if min_dino <= likeness[i][j] <= max_dino]
            if not pairs:
                yield LeftOut("no pair of its images passes the scores")
            for content, target in pairs:
                yield Item(
                    key=f"{name}/{number}/{content}-{target}",
                    prompt=entry["prompts"][target],
                    content=images[content],
                    target=images[target],
                    meta={} if likeness is None else {"dino": likeness[content][target]},
                )


def _files(path: str) -> list[str]:
    if path.endswith(".json"):
        return [path]
    found = [place.file for name, place in archives.list_members(path).items() if name.endswith(".json")]
    scored = [file for file in found if file.endswith("metadata_with_scores.json")]
    files = scored or [file for file in found if file.endswith("metadata.json")]
    if not files:
        raise InputError(f"{path} holds no *metadata.json: check the path.")
    return files


def _checked(entry: Any) -> str | None:
    """Say why a set is not used."""
    if not isinstance(entry, Mapping):
        return "it is not an object with names and values"
    names, prompts, likeness = (entry.get(name) for name in ("filenames", "prompts", "dino_scores"))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return "it does not name its images"
    if (
        not isinstance(prompts, list)
        or len(prompts) != len(names)
        or not all(isinstance(p, str) and p for p in prompts)
    ):
        return "its prompts do not fit its images"
    rows = likeness if isinstance(likeness, list) else []
    square = [row for row in rows if isinstance(row, list) and len(row) == len(names) and all(map(_is_score, row))]
    if likeness is not None and not len(square) == len(rows) == len(names):
        return "its table of similarities does not fit its images"
    scores = entry.get("aesthetics_scores")
    if scores is not None and not (isinstance(scores, Mapping) and all(map(_is_score, scores.values()))):
        return "its aesthetics scores are no numbers"
    return None


def _aesthetics(entry: Mapping[str, Any], name: str) -> float | int:
    """Give an image's score: without any, every image passes; without its own, it does not."""
    scores = entry.get("aesthetics_scores")
    return math.inf if scores is None else scores.get(posixpath.splitext(posixpath.basename(name))[0], -math.inf)


def _is_score(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
