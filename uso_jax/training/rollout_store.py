# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What rounds of roll-outs made, on disk, in the layout of a step of a curation.

    FOLDER/00012.tar      the images, NUMBER.png; NUMBER counts from 0 in each round
    FOLDER/00012.jsonl    a row per image; written last, so its presence marks a complete round

A row has "number", "source" and "index" of its example, the image's digest in "image", its "scores" by name, null where
there is none, and its "advantage". With several processes, each has its own files, 00012-PROCESS.
"""

import hashlib
import io
import json
import math
import pathlib
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

import jax
import numpy as np
from jaxtyping import Float, Int64, UInt8
from PIL import Image

from uso_jax.common import atomic_files, untrusted

Images = UInt8[np.ndarray, "n h w 3"]
Scores = Mapping[str, Float[np.ndarray, " n"]]


class _Row(TypedDict):
    image: str
    scores: dict[str, float | None]


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
        with_images: bool,
    ) -> None:
        """Write a round: images, and then rows; `rows` has source and index of every image's example."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if with_images:
            with atomic_files.beside(self._file(number, ".tar")) as temporary, tarfile.open(temporary, "w") as archive:
                for i, image in enumerate(images):
                    png = io.BytesIO()
                    Image.fromarray(image).save(png, "PNG")
                    member = tarfile.TarInfo(f"{i}.png")
                    member.size = len(png.getvalue())
                    archive.addfile(member, io.BytesIO(png.getvalue()))
        lines = []
        for i, (source, index) in enumerate(rows.tolist()):
            found = {name: float(values[i]) if math.isfinite(values[i]) else None for name, values in scores.items()}
            row = {"number": i, "source": source, "index": index, "image": _digest(images[i]), "scores": found}
            lines.append(json.dumps(row | {"advantage": float(advantages[i])}))
        atomic_files.write_file(self._file(number, ".jsonl"), "\n".join(lines) + "\n")

    def read(self, number: int, images: Images) -> dict[str, Float[np.ndarray, " n"]] | None:
        """Return the scores of a round that has exactly these images, or None if there is none on disk.

        Raises:
          InputError: the file is damaged.
        """
        file = self._file(number, ".jsonl")
        if not file.is_file():
            return None
        rows = [row for _, row in untrusted.json_lines(file, _Row, remedy="delete it, and run the same command again")]
        if not rows or [row["image"] for row in rows] != [_digest(image) for image in images]:
            return None  # of another policy: the run went back, or the file is left from another one
        value = lambda score: math.nan if score is None else score
        return {name: np.array([value(row["scores"].get(name)) for row in rows]) for name in rows[0]["scores"]}

    def _file(self, number: int, suffix: str) -> pathlib.Path:
        part = f"-{jax.process_index()}" if jax.process_count() > 1 else ""
        return self.folder / f"{number:05d}{part}{suffix}"


def _digest(image: UInt8[np.ndarray, "h w 3"]) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]
