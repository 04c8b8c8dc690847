# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""UNO-1M: pairs of images of one subject, with captions and the scores of a vision-language model.

    FOLDER/labels/split1.json ...      [{"img_path1": "split1/a.png", "img_path2": "split1/b.png",
                                         "caption": {"img_path1": "...", "img_path2": "...", "subject": ["bread"]},
                                         "vlm_filter_cot": {"score_part": {"colour": 4.0}, "score_final": 3.5}}, ...]
    FOLDER/images/split1/a.png ...     or FOLDER/images/split1.tar (not .tar.gz: gunzip it)

Scores run from 0 to 4. Rows with a part or final score out of range, where the data set's authors parsed the model's
answer wrongly (split 6, row 1295: 131184.67), are skipped. Each pair yields two triplets, one in each direction.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from uso_jax.common.errors import InputError
from uso_jax.data.readers.json_list import read_items
from uso_jax.data.readers.source import Item, LeftOut, both_ways
from uso_jax.data.storage import archives, urls
from uso_jax.data.storage.places import Place

_TOP = 4.0  # the best score
_CAPTION, _SCORE = "missing caption", "score is not a number from 0 to 4"


def read_uno_1m(path: str | Path, min_score: float | int = 3.5, both: bool = True) -> Iterator[Item | LeftOut]:
    """Read the folder, or one of its label files.

    Args:
      path: the folder with labels/ and images/, or a label file such as FOLDER/labels/split1.json.
      min_score: minimum of score_final; the authors recommend 3.5, and their paper trains on 4.
      both: also yield the triplet from the second image to the first.
    """
    path = str(path)
    folder, files = _files(path)
    archive = functools.cache(archives.list_members)
    for file in files:
        name = file.rpartition("/")[2].removesuffix(".json")
        for number, (where, row) in enumerate(read_items(file, nan=True)):
            key = f"{name}/{number}"
            if isinstance(reason := _checked(row, min_score), str):
                yield LeftOut(reason)
                continue
            images = [_image(folder, row[side], where, archive) for side in ("img_path1", "img_path2")]
            captions = [row["caption"][side].strip() for side in ("img_path1", "img_path2")]
            meta = {"subject": row["caption"].get("subject", []), "score": row["vlm_filter_cot"]["score_final"]}
            yield from both_ways(key, images, captions, meta, both)


def _files(path: str) -> tuple[str, list[str]]:
    """Return the folder and its label files. The union of all label files, beside labels/, is not read."""
    if path.lower().endswith((".json", ".jsonl")):
        folder = urls.parent(path)
        return (urls.parent(folder) if folder.rstrip("/").endswith("labels") else folder), [path]
    labels = urls.join(path, "labels", path)
    if not urls.is_folder(labels):
        raise InputError(f"{path} has no folder labels: pass the folder that contains labels/ and images/.")
    return path, sorted(archives.list_files(labels, ".json"), key=lambda name: (len(name), name))


def _checked(row: Any, min_score: float | int) -> str | None:
    """Return why a row is skipped, or None."""
    if not isinstance(row, Mapping) or not all(isinstance(row.get(s), str) for s in ("img_path1", "img_path2")):
        return "not two image paths"
    caption, judged = row.get("caption"), row.get("vlm_filter_cot")
    if not isinstance(caption, Mapping):
        return _CAPTION
    if not all(isinstance(caption.get(s), str) and caption[s].strip() for s in ("img_path1", "img_path2")):
        return _CAPTION
    if not isinstance(judged, Mapping):
        return _SCORE
    parts = judged.get("score_part") or {}
    scores = [judged.get("score_final"), *(parts.values() if isinstance(parts, Mapping) else [None])]
    if not all(type(s) in (int, float) and math.isfinite(s) and 0 <= s <= _TOP for s in scores):
        return _SCORE
    return f"score below {min_score:g}" if scores[0] < min_score else None


def _image(folder: str, name: str, where: str, archive) -> Place:
    split = name.partition("/")[0]
    whole = urls.join(folder, f"images/{name}", where)
    tar = urls.join(folder, f"images/{split}.tar", where)
    if _is_packed(tar, urls.join(folder, f"images/{split}", where)):
        members = archive(tar)
        return members.get(name) or members.get(f"images/{name}") or Place(tar, name, 0, 0)
    return Place(whole)


@functools.cache
def _is_packed(tar: str, folder: str) -> bool:
    if urls.is_folder(folder):
        return False
    if not urls.exists(tar) and urls.exists(tar + ".gz"):
        raise InputError(
            f"{tar}.gz is compressed as a whole, so its images cannot be read individually: gunzip it first."
        )
    return urls.exists(tar)
