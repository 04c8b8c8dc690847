# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What rounds of roll-outs made, on disk, in the layout of a step of a curation.

    FOLDER/00012.tar      the images, NUMBER.png; NUMBER counts from 0 in each round. Then what they were generated
                          for, as the model saw it: FIRST.content.png, FIRST.style_0.png, FIRST.style_1.png, ...
    FOLDER/00012.jsonl    a row per image; written last, so its presence marks a complete round

A row has "number", "source" and "index" of its example, the image's digest in "image", its "scores" by name, null where
there is none, and its "advantage". Where the archive is kept, "request" is FIRST, the number of the group's first
image, whose row has the "prompt". With several processes, each has its own files, 00012-PROCESS.
"""

import functools
import hashlib
import itertools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import jax
import numpy as np
from jaxtyping import Float, Int64, UInt8

from uso_jax.common import atomic_files, untrusted
from uso_jax.common.errors import InputError
from uso_jax.data.storage import archives
from uso_jax.data.storage.places import Place

Images = UInt8[np.ndarray, "n h w 3"]
Scores = Mapping[str, Float[np.ndarray, " n"]]


_AGAIN = "delete it, and run the same command again"


class _Row(TypedDict):
    number: NotRequired[int]
    image: str
    scores: dict[str, float | None]
    request: NotRequired[int]
    prompt: NotRequired[str]


@dataclass(frozen=True, eq=False)
class Request:
    """What the images of a group were generated for, as the model saw it; what is unknown or absent is empty."""

    prompt: str = ""
    content: UInt8[np.ndarray, "_ _ 3"] | None = None
    styles: Sequence[UInt8[np.ndarray, "_ _ 3"]] = ()


@dataclass(frozen=True)
class Group:
    """The images of one request on disk.

    Attributes:
      name: STAGE/ROUND/FIRST.
      images: by key, STAGE/ROUND/NUMBER/DIGEST, in their order.
    """

    name: str
    prompt: str
    content: Place | None
    styles: tuple[Place, ...]
    images: dict[str, Place]


@dataclass(frozen=True)
class RolloutStore:
    """The rounds of one stage and process."""

    folder: pathlib.Path

    def write(
        self,
        number: int,
        images: Images,
        rows: Int64[np.ndarray, "n 2"],
        scores: Scores,
        advantages: Float[np.ndarray, " n"],
        requests: Sequence[Request],
    ) -> None:
        """Write a round: images, and then rows.

        Args:
          number: of the round.
          images: all images, group after group.
          rows: source and index of every image's example.
          scores: by name, NaN where there is none.
          advantages: of every image.
          requests: of every group; none if no images are to be kept.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        group = len(images) // len(requests) if requests else 0
        if requests:
            members = {f"{i}": image for i, image in enumerate(images)}
            for i, request in enumerate(requests):
                members |= {} if request.content is None else {f"{i * group}.content": request.content}
                members |= {f"{i * group}.style_{j}": style for j, style in enumerate(request.styles)}
            archives.write_images(self._file(number, ".tar"), members)
        lines = []
        for i, (source, index) in enumerate(rows.tolist()):
            found = {name: float(values[i]) if math.isfinite(values[i]) else None for name, values in scores.items()}
            row = {"number": i, "source": source, "index": index, "image": _digest(images[i]), "scores": found}
            row["advantage"] = float(advantages[i])
            if requests:
                row["request"] = i // group * group
                row |= {"prompt": requests[i // group].prompt} if i % group == 0 else {}
            lines.append(json.dumps(row))
        atomic_files.write_file(self._file(number, ".jsonl"), "\n".join(lines) + "\n")

    def read(self, number: int, images: Images) -> dict[str, Float[np.ndarray, " n"]] | None:
        """Return the scores of a round that has exactly these images, or None if there is none on disk.

        Raises:
          InputError: the file is damaged.
        """
        file = self._file(number, ".jsonl")
        if not file.is_file():
            return None
        rows = [row for _, row in untrusted.json_lines(file, _Row, remedy=_AGAIN)]
        if not rows or [row["image"] for row in rows] != [_digest(image) for image in images]:
            return None  # of another policy: the run went back, or the file is left from another one
        value = lambda score: math.nan if score is None else score
        return {name: np.array([value(row["scores"].get(name)) for row in rows]) for name in rows[0]["scores"]}

    def _file(self, number: int, suffix: str) -> pathlib.Path:
        part = f"-{jax.process_index()}" if jax.process_count() > 1 else ""
        return self.folder / f"{number:05d}{part}{suffix}"


def _digest(image: UInt8[np.ndarray, "h w 3"]) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


def groups(folder: pathlib.Path) -> list[Group]:
    """Return all groups of two images or more below a folder of stages, WORKDIR/rollouts; rounds in their order.

    Raises:
      InputError: a round is damaged.
    """
    files = sorted(path for path in folder.glob("*/*.jsonl") if path.with_suffix(".tar").is_file())
    return list(itertools.chain.from_iterable(_round(path, path.stat().st_mtime_ns) for path in files))


@functools.lru_cache(maxsize=4096)
def _round(file: pathlib.Path, written: int) -> list[Group]:
    """Read a round; `written` is when, so that a round that is made again is read again."""
    members = archives.list_members(str(file.with_suffix(".tar")))
    rows = [row for _, row in untrusted.json_lines(file, _Row, remedy=_AGAIN) if "request" in row]
    by_request: dict[int, dict[str, Place]] = {}
    prompts: dict[int, str] = {}
    for row in rows:
        number, first = row.get("number", -1), row["request"]
        if (place := members.get(f"{number}.png")) is None:
            raise InputError(f"{file} is damaged: its archive lacks image {number}; {_AGAIN}")
        by_request.setdefault(first, {})[f"{file.parent.name}/{file.stem}/{number}/{row['image']}"] = place
        if "prompt" in row:
            prompts[first] = row["prompt"]
    found = []
    for first, images in by_request.items():
        styles = (members.get(f"{first}.style_{j}.png") for j in itertools.count())
        styles = tuple(itertools.takewhile(lambda place: place is not None, styles))
        name = f"{file.parent.name}/{file.stem}/{first}"
        found.append(Group(name, prompts.get(first, ""), members.get(f"{first}.content.png"), styles, images))
    return [group for group in found if len(group.images) > 1]
