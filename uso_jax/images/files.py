# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reference images on the way in, and made images with their records on the way out.

A made image is a PNG that holds its record (prompt, seed, sizes, references, weights) as text under the key
"uso_jax", with the same record beside it in a .json file.
"""

import hashlib
import io
import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from uso_jax.common import atomic_files
from uso_jax.common.errors import InputError
from uso_jax.images import decode
from uso_jax.images.decode import Pixels

KEY = "uso_jax"
ImageLike = str | pathlib.Path | Image.Image | np.ndarray


@dataclass(frozen=True, eq=False)
class Reference:
    """An image that a request refers to: RGB bytes, where they came from, and what was done to read them."""

    pixels: Pixels
    sha256: str  # of the file, or of the pixels where there is none
    path: str | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: "ImageLike | Reference") -> "Reference":
        """Read a path, a PIL image or an array of bytes; one that has been read is given back.

        Raises:
          InputError: it is no image, or too large; the message names it.
        """
        if isinstance(source, Reference):
            return source
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.ndim != 3 or source.shape[-1] != 3 or 0 in source.shape:
                raise InputError(f"an image array must be uint8 [height, width, 3], not {source.dtype} {source.shape}")
            return cls(source, _digest(source))
        if isinstance(source, Image.Image):
            pixels, notes = decode.read_image(source, what="the image")
            return cls(pixels, _digest(pixels), None, notes)
        if not isinstance(source, str | pathlib.Path):
            raise InputError(f"an image is a path, a PIL image or an array, not {type(source).__name__}")
        path, what = pathlib.Path(source), f"image {str(source)!r}"
        if not path.is_file():
            raise InputError(f"{what} {'is not a file' if path.exists() else 'does not exist'}; check the path")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{what} cannot be read: {error.strerror}; check its permissions") from error
        pixels, notes = decode.read_image(data, what=what)
        return cls(pixels, hashlib.sha256(data).hexdigest(), str(source), notes)

    @property
    def name(self) -> str:
        return f"image {self.path!r}" if self.path else "the image"

    def record(self) -> dict[str, Any]:
        """Say which image it is, in JSON terms."""
        return {"path": self.path, "sha256": self.sha256}

    def content(self, long_side: int, multiple: int) -> Pixels:
        """Resize to `long_side` and cut the centre to multiples of `multiple`, as upstream (preprocess_ref)."""
        height, width = self.pixels.shape[:2]
        if height == width == multiple:  # upstream keeps an image of one token
            return self.pixels
        scale = long_side / max(height, width)
        size = (long_side, int(scale * height)) if width >= height else (int(scale * width), long_side)
        cut = tuple(side // multiple * multiple for side in size)
        if 0 in cut:
            raise InputError(
                f"{self.name} is too narrow for a content image: {width} x {height} would become {size[0]} x {size[1]},"
                f" less than {multiple} pixels; crop it, or raise content_ref"
            )
        left, top = ((side - kept) // 2 for side, kept in zip(size, cut, strict=True))
        resized = Image.fromarray(self.pixels).resize(size, Image.Resampling.LANCZOS)
        return np.asarray(resized.crop((left, top, left + cut[0], top + cut[1])))


def _digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


# ---------------------------------------------------------------------------------------------------- made images


def append_references(image: Image.Image, references: list[Reference]) -> Image.Image:
    """Put the references to the right of an image, in their own sizes, as upstream's --concat_refs."""
    parts = [image, *(Image.fromarray(reference.pixels) for reference in references)]
    joined = Image.new("RGB", (sum(part.width for part in parts), max(part.height for part in parts)))
    left = 0
    for part in parts:
        joined.paste(part, (left, 0))
        left += part.width
    return joined


def write_image(path: pathlib.Path, image: Image.Image, record: Mapping[str, Any]) -> None:
    """Write the image with its record; where the PNG can be seen, both are whole.

    Raises:
      InputError: it could not be written.
    """
    text = json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True)
    info = PngImagePlugin.PngInfo()
    info.add_itxt(KEY, text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    with atomic_files.explained(path, "choose another --save_path"):
        path.parent.mkdir(parents=True, exist_ok=True)
        for target, data in ((path.with_suffix(".json"), (text + "\n").encode()), (path, buffer.getvalue())):
            atomic_files.write_file(target, data)


def read_record(path: pathlib.Path) -> dict[str, Any]:
    """Read a made image's record.

    Raises:
      InputError: there is no such image, or it has no record.
    """
    try:
        with Image.open(path) as image:
            text = getattr(image, "text", {}).get(KEY)
        record = json.loads(text) if text else None
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path") from None
    except (*decode.BROKEN, RecursionError) as error:
        raise InputError(f"{path} is not an image with a readable record ({error})") from error
    if not isinstance(record, dict) or record.get("format") != 1:
        raise InputError(f"{path} has no record of uso_jax: it was not made by this program, or saved anew by another")
    return record
