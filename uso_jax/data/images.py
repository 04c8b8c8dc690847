# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images as uint8 arrays: decoding, encoding, and the two ways a condition is resized.

Pictures are uint8 [height, width, 3] in sRGB. Sizes are always (height, width).
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from uso_jax.errors import BadExample

Picture = UInt8[np.ndarray, "_ _ 3"]
Fit = Callable[[Image.Image], Image.Image]

MAX_PIXELS = 64_000_000  # checked on the header, before any pixel memory is taken
_ORIENTATION = 0x0112  # of EXIF; from 5 on, width and height change places
_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)


def decode(data: bytes | Path, *, what: str, number: int = -1, fit: Fit | None = None) -> Picture:
    """Decode an image file or its bytes to sRGB, with the EXIF orientation and the colour profile applied.

    Args:
      data: the file or its bytes.
      what: names the image in the BadExample that is raised when it does not decode.
      number: 0 or 1 gives the left or right of two squares side by side; -1 the whole image.
      fit: resizes the picture before it becomes an array, which saves a copy; `cover` or `squash` of the array would
        give the same.
    """
    with _opened(data, what) as image:
        # Without the copies that PIL makes by default: they take a third of the time.
        ImageOps.exif_transpose(image, in_place=True)
        profile = image.info.get("icc_profile")
        if image.mode.startswith("I"):
            # Sixteen bits a pixel, which convert would clip.
            levels = np.asarray(image).astype(np.int64)
            image = Image.fromarray(np.clip((levels + 128) // 257, 0, 255).astype(np.uint8))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            # Transparent pixels often hide black; white is what every viewer shows behind them.
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            image = image.convert("RGB")
        image = _to_srgb(image, profile)
        image = image if image.mode == "RGB" else image.convert("RGB")
        if number >= 0:
            image = image.crop(_square(*image.size, number, what))
        return np.asarray(image if fit is None else fit(image))


def size(data: bytes | Path, *, what: str) -> tuple[int, int]:
    """Give an image's (height, width) as `decode` will, from its header alone; the bytes may end after it."""
    with _opened(data, what) as image:
        width, height = image.size
        # Of other formats the orientation may stand behind the pixels, and hardly any file has one.
        turned = image.format == "JPEG" and image.getexif().get(_ORIENTATION, 1) >= 5
        return (width, height) if turned else (height, width)


@contextlib.contextmanager
def _opened(data: bytes | Path, what: str) -> Iterator[Image.Image]:
    """Open an image whose size is allowed; whatever is wrong with it becomes a BadExample."""
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadExample(f"{what} has {width} x {height} pixels; the limit is {MAX_PIXELS} in all: shrink it.")
            yield image
    except FileNotFoundError:
        raise BadExample(f"{what} does not exist: check the path.") from None
    except _BROKEN as error:
        if isinstance(error, BadExample):
            raise
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else error
        raise BadExample(f"{what} is not an image that can be decoded ({reason}): replace or remove it.") from error


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Apply an embedded colour profile, unless it is sRGB or useless."""
    if not profile:
        return image
    try:
        described = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(described).lower():
            return image
        return ImageCms.profileToProfile(image, described, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image  # viewers ignore a broken profile too


def _square(width: int, height: int, number: int, what: str) -> tuple[int, int, int, int]:
    """Give the box of one of two squares side by side, with the same margin around and between them.

    With margin m and side s the picture is 2 s + 3 m wide and s + 2 m high, so its size tells both.
    """
    margin = 2 * height - width
    side = height - 2 * margin
    if margin < 0 or side < 1:
        raise BadExample(f"{what} is {width} x {height}, which two squares side by side are not: remove it.")
    left = margin + number * (side + margin)
    return left, margin, left + side, margin + side


def encode_png(image: Picture) -> bytes:
    """Encode an image losslessly."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def cover(image: Picture, size: tuple[int, int]) -> Picture:
    """Resize until `size` is covered, then crop the centre; the same image comes back when it already fits."""
    return image if image.shape[:2] == tuple(size) else np.asarray(covering(size)(Image.fromarray(image)))


def covering(size: tuple[int, int]) -> Fit:
    """Give what `cover` does, for `decode`."""
    height, width = size
    return lambda image: (
        image if image.size == (width, height) else ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    )


def squash(image: Picture, size: tuple[int, int]) -> Picture:
    """Resize to `size` without keeping the aspect ratio, as SigLIP's image processor does."""
    return image if image.shape[:2] == tuple(size) else np.asarray(squashing(size)(Image.fromarray(image)))


def squashing(size: tuple[int, int]) -> Fit:
    """Give what `squash` does, for `decode`."""
    height, width = size
    return lambda image: (
        image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)
    )
