# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images as uint8 arrays: decoding, encoding, and the two ways to resize a condition.

Images are uint8 [height, width, 3] in sRGB. Sizes are always (height, width).
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from uso_jax.common.errors import BadExample

Pixels = UInt8[np.ndarray, "_ _ 3"]
ImageData = bytes | Path | Image.Image
Fit = Callable[[Image.Image], Image.Image]

MAX_PIXELS = 64_000_000  # checked on the header, before any pixel memory is taken
BROKEN = (OSError, SyntaxError, ValueError)  # what PIL raises for files that are not images
_ORIENTATION = 0x0112  # EXIF tag; from 5 on, width and height are swapped


def read_image(source: ImageData, *, what: str) -> tuple[Pixels, tuple[str, ...]]:
    """Read an image as sRGB. Return it, and one sentence for each thing that was left out.

    The EXIF orientation and the colour profile are applied. Transparent pixels are blended with white.

    Args:
      source: a file, its bytes, or an image that PIL has opened.
      what: names the image in messages.

    Raises:
      BadExample: the source is not an image, or is too large.
    """
    with _opened(source, what) as image:
        notes = (f"{what} is animated: only its first frame is used",) if getattr(image, "is_animated", False) else ()
        return np.array(_rgb(image.copy() if image is source else image)), notes


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
    with _opened(source, what) as image:
        image = _rgb(image)
        if number >= 0:
            image = image.crop(_square(*image.size, number, what))
        return np.asarray(image if fit is None else fit(image))


def _rgb(image: Image.Image) -> Image.Image:
    """Return an image as sRGB. The argument may be modified: copies would take a third of the time."""
    ImageOps.exif_transpose(image, in_place=True)
    profile = image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):
        # PIL would clip these to white. Integers are read as 16-bit, floats as [0, 1].
        values = np.asarray(image, np.float64) * (255 if image.mode == "F" else 255 / 65535)
        image = Image.fromarray(np.rint(np.clip(np.nan_to_num(values), 0, 255)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        # Transparent pixels are often black; viewers show white behind them.
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert("RGB")
    image = _to_srgb(image, profile)
    return image if image.mode == "RGB" else image.convert("RGB")


def image_size(source: ImageData, *, what: str) -> tuple[int, int]:
    """Return the (height, width) that `read_image` will return, from the header alone; the bytes may end after it.

    Raises:
      BadExample: the source is not an image, or is too large.
    """
    with _opened(source, what) as image:
        width, height = image.size
        # Other formats may store the orientation after the pixels, and files with one are rare.
        turned = image.format == "JPEG" and image.getexif().get(_ORIENTATION, 1) >= 5
        return (width, height) if turned else (height, width)


@contextlib.contextmanager
def _opened(source: ImageData, what: str) -> Iterator[Image.Image]:
    """Open an image of an allowed size. Raise BadExample for anything that is wrong with it."""
    try:
        with contextlib.ExitStack() as stack:
            image = source
            if not isinstance(source, Image.Image):
                image = stack.enter_context(Image.open(io.BytesIO(source) if isinstance(source, bytes) else source))
            width, height = image.size
            if not width or not height:
                raise BadExample(f"{what} has no pixels; replace or remove it")
            if width * height > MAX_PIXELS:
                raise BadExample(f"{what} has {width} x {height} pixels; the limit is {MAX_PIXELS}: shrink it")
            yield image
    except FileNotFoundError:
        raise BadExample(f"{what} does not exist; check the path") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadExample(f"{what} has too many pixels; the limit is {MAX_PIXELS}: shrink it") from error
    except BadExample:
        raise
    except BROKEN as error:
        # PIL's message names an object in memory, which tells the user nothing.
        reason = "unknown image format" if isinstance(error, UnidentifiedImageError) else error
        empty = source == b"" or (isinstance(source, Path) and not source.stat().st_size)
        reason = "is empty" if empty else f"cannot be decoded ({reason})"
        raise BadExample(f"{what} {reason}; replace or remove it") from error


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Apply an embedded colour profile, unless it is sRGB or invalid."""
    if not profile:
        return image
    try:
        described = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(described).lower():
            return image
        return ImageCms.profileToProfile(image, described, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image  # viewers ignore an invalid profile too


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
