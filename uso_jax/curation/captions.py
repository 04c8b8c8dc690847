# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The first step: read every stylised image, say what it shows, and take its fingerprint for near-duplicates.

Captions come from the source's record, from a vision-language model, or are left empty; an image that cannot be read
is listed with the reason. Without a caption only a layout that is preserved can be made.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import imagehash
import numpy as np
from PIL import Image

from uso_jax.common.errors import BadExample
from uso_jax.curation.config import CurationConfig
from uso_jax.curation.store import Folder, Made, Row
from uso_jax.data.readers.source import FileTriplets
from uso_jax.data.triplet import Triplet, TripletSource
from uso_jax.images import decode
from uso_jax.vlm.client import Vlm, VlmError

_COLOURS = 4  # a side of the thumbnail that tells images of one shape and other colours apart


def caption_shard(folder: Folder, source: TripletSource, config: CurationConfig, vlm: Vlm | None, shard: int) -> Made:
    """Read and caption one shard."""
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
    """Give what all candidates of an image share, and the image itself unless it has a file of its own."""
    try:
        triplet = source[index]
        if triplet.target is None:
            raise BadExample(f"item {triplet.key} has no target")
        item = source.item(index) if isinstance(source, FileTriplets) else None
    except BadExample as error:
        return {"failed": f"unreadable: {error}"}, None
    row: Row = {"key": triplet.key, "size": list(triplet.target.shape[:2]), "hash": fingerprint(triplet.target)}
    row |= _caption(triplet, config, vlm)
    if item is not None and item.target.view < 0:
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
    """Take a caption as it is meant to be: one line of words."""
    words = " ".join(answer.split()).strip("\"'` ")
    if not 1 <= len(words.split()) <= 60 or words.startswith(("{", "<")):
        raise ValueError("a caption is one sentence of at most 60 words")
    return words.removesuffix(".")


def fingerprint(pixels: decode.Pixels) -> str:
    """Give a perceptual hash of the shapes (64 bits), and the colours of a tiny thumbnail, as hexadecimal digits."""
    image = Image.fromarray(pixels)
    shapes = str(imagehash.phash(image))
    colours = np.asarray(image.resize((_COLOURS, _COLOURS), Image.Resampling.BOX))
    return f"{shapes}{colours.tobytes().hex()}"
