# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images as uint8 arrays: decoding, encoding, and the two ways to resize a condition.

Images are uint8 [height, width, 3] in sRGB. Sizes are always (height, width).
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from uso_jax.common.errors import BadExample
from uso_jax.images import colours, opening
from uso_jax.images.opening import Limits

Pixels = UInt8[np.ndarray, "_ _ 3"]
ImageData = bytes | Path | Image.Image
ReferenceMode = Literal["displayed", "upstream"]  # as viewers show an image, or as bytedance/USO reads it
Fit = Callable[[Image.Image], Image.Image]

MAX_PIXELS = opening.FILES.pixels
_UNLIKE_UPSTREAM = {
    "transparency": "has transparent pixels, which are blended with white; upstream shows the colours under them",
    "profile": "has a colour profile, which is converted to sRGB; upstream ignores it",
    "depth": "has more than 8 bits a pixel, which are scaled to 8; upstream clips them to white",
}


def read_image(
    source: ImageData, *, what: str, limits: Limits = opening.FILES, mode: ReferenceMode = "displayed"
) -> tuple[Pixels, tuple[str, ...]]:
    """Read an image as sRGB. Return it, and one sentence for each thing that is left out or read unlike upstream.

    The EXIF orientation and the colour profile are applied. Transparent pixels are blended with white.

    Args:
      source: a file, its bytes, or an image that PIL has opened.
      what: names the image in messages.
      limits: the largest image that is allowed.
      mode: "upstream" applies nothing, as bytedance/USO's `Image.open(path).convert("RGB")`.

    Raises:
      BadExample: the source is not an image, or is too large.
    """
    opened = opening.open_image(source, what=what, limits=limits, corrected=mode == "displayed")
    if mode == "upstream":
        pixels, changed = np.array(opened.image.convert("RGB")), set()
    else:
        pixels, changed = colours.pixels(opened)
    found = [f"{what} is animated: only its first frame is used"] if opened.animated else []
    if opened.orientation > 1:
        found.append(f"{what} is turned as its EXIF orientation says; upstream ignores that")
    found += [f"{what} {sentence}" for name, sentence in _UNLIKE_UPSTREAM.items() if name in changed]
    return pixels, tuple(found)


def decode_image(source: bytes | Path, *, what: str, number: int = -1, fit: Fit | None = None) -> Pixels:
    """Read an image as `read_image` does, without notes.

    Args:
      source: the file or its bytes.
      what: names the image in messages.
      number: 0 or 1 for the left or right one of two squares side by side; -1 for the whole image.
      fit: resizes the image before it becomes an array, which saves a copy. The result equals `cover` or `squash` of
        the array.

    Raises:
      BadExample: the source is not an image, or is too large.
    """
    image = colours.srgb(opening.open_image(source, what=what))
    if number >= 0:
        image = image.crop(_square(*image.size, number, what))
    return np.asarray(image if fit is None else fit(image))


def _square(width: int, height: int, number: int, what: str) -> tuple[int, int, int, int]:
    """Return the box of one of two squares side by side, with the same margin around and between them.

    With margin m and side s the image is 2 s + 3 m wide and s + 2 m high, so its size determines both.
    """
    margin = 2 * height - width
    side = height - 2 * margin
    if margin < 0 or side < 1:
        raise BadExample(f"{what} is {width} x {height}, which is not the shape of two squares side by side; remove it")
    left = margin + number * (side + margin)
    return left, margin, left + side, margin + side


def encode_png(image: Pixels) -> bytes:
    """Encode an image losslessly."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def cover(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize until `size` is covered, then crop the centre. Return the argument itself if it already has this size."""
    return image if image.shape[:2] == tuple(size) else np.asarray(cover_fit(size)(Image.fromarray(image)))


def cover_fit(size: tuple[int, int]) -> Fit:
    """Return what `cover` does, as the `fit` of `decode_image`."""
    height, width = size
    return lambda image: (
        image if image.size == (width, height) else ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    )


def squash(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize to `size` without keeping the aspect ratio, as SigLIP's image processor does."""
    return image if image.shape[:2] == tuple(size) else np.asarray(squash_fit(size)(Image.fromarray(image)))


def squash_fit(size: tuple[int, int]) -> Fit:
    """Return what `squash` does, as the `fit` of `decode_image`."""
    height, width = size
    return lambda image: (
        image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)
    )
