# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Step "captions": read every stylised image, caption it, and compute its fingerprint for deduplication.

Captions come from the source, from a vision-language model, or are empty. Unreadable images are listed with the reason.
Without a caption only candidates with a preserved layout can be made.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import imagehash
import numpy as np
from PIL import Image

from uso_jax.common.errors import BadExample
from uso_jax.common.untrusted import printable
from uso_jax.curation.config import CurationConfig
from uso_jax.curation.store import Folder, Made, Row
from uso_jax.data.readers.source import FileTriplets
from uso_jax.data.triplet import Triplet, TripletSource
from uso_jax.images import decode
from uso_jax.vlm.client import Vlm, VlmError

_COLOURS = 4  # side of the thumbnail that distinguishes images of equal shapes and other colours


def caption_shard(folder: Folder, source: TripletSource, config: CurationConfig, vlm: Vlm | None, shard: int) -> Made:
    """Read and caption the images of one shard.

    Returns:
      One row per candidate, and the images that exist in no file, by candidate number.
    """
    read = lambda index: _read(source, config, vlm, index)
    with ThreadPoolExecutor(config.vlm.threads) as pool:
        found = list(pool.map(read, folder.indices(shard)))
    rows, images = [], {}
    for index, (row, pixels) in zip(folder.indices(shard), found, strict=True):
        numbers = folder.numbers(index)
        first = min(numbers)
        if pixels is not None:
            images[first] = pixels
        for number, layout in numbers.items():
            rows.append(dict(number=number, index=index, layout=layout) | row)
            if pixels is not None:
                rows[-1]["picture"] = first
    return rows, images


def _read(
    source: TripletSource, config: CurationConfig, vlm: Vlm | None, index: int
) -> tuple[Row, decode.Pixels | None]:
    """Return the row entries shared by all candidates of an image, and the image unless it has its own file."""
    try:
        triplet = source[index]
        if triplet.target is None:
            raise BadExample(f"item {triplet.key} has no target")
        item = source.item(index) if isinstance(source, FileTriplets) else None
    except BadExample as error:
        return {"failed": f"unreadable: {error}"}, None
    row: Row = {"key": triplet.key, "size": list(triplet.target.shape[:2]), "hash": fingerprint(triplet.target)}
    row |= _caption(triplet, config, vlm)
    # A name that is not UTF-8 cannot be recorded, so the image is copied.
    if item is not None and item.target.view < 0 and item.target.file == printable(item.target.file):
        return row | {"place": item.target.pack()}, None
    return row, triplet.target


def _caption(triplet: Triplet, config: CurationConfig, vlm: Vlm | None) -> dict[str, Any]:
    if config.captions == "none":
        return {"caption": ""}
    if config.captions == "record":
        return {"caption": triplet.meta.get("phrase") or triplet.prompt}
    try:
        return {"caption": vlm.ask([config.caption_question, triplet.target], _sentence)}
    except VlmError as error:
        return {"caption": "", "failed": f"caption: {error.kind}: {error}"}


def _sentence(answer: str) -> str:
    """Normalise an answer to a one-line caption.

    Raises:
      ValueError: it is empty, too long, or markup.
    """
    words = " ".join(answer.split()).strip("\"'` ")
    if not 1 <= len(words.split()) <= 60 or words.startswith(("{", "<")):
        raise ValueError("a caption is one sentence of at most 60 words")
    return words.removesuffix(".")


def fingerprint(pixels: decode.Pixels) -> str:
    """Return the 64-bit perceptual hash (pHash) followed by the RGB bytes of a tiny thumbnail, in hexadecimal."""
    image = Image.fromarray(pixels)
    shapes = str(imagehash.phash(image))
    colours = np.asarray(image.resize((_COLOURS, _COLOURS), Image.Resampling.BOX))
    return f"{shapes}{colours.tobytes().hex()}"
