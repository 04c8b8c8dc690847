# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images as uint8 arrays: decoding, encoding, and the two ways a condition is resized.

Pictures are uint8 [height, width, 3] in sRGB. Sizes are always (height, width).
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from uso_jax.errors import BadExample

Picture = UInt8[np.ndarray, "_ _ 3"]
Source = bytes | Path | Image.Image

MAX_PIXELS = 64_000_000  # checked on the header, before any pixel memory is taken
BROKEN = (OSError, SyntaxError, ValueError)  # what PIL raises for files that are no pictures
_ORIENTATION = 0x0112  # of EXIF; from 5 on, width and height change places


def read(source: Source, *, what: str) -> tuple[Picture, tuple[str, ...]]:
    """Read an image file, its bytes, or what PIL has opened; give sRGB, and in sentences what was left out of it.

    The EXIF orientation and the colour profile are applied. Transparent parts become white.

    Raises:
      BadExample: it is no picture, or too large; the message calls it `what`.
    """
    with _opened(source, what) as image:
        notes = (f"{what} is animated: only its first frame is used",) if getattr(image, "is_animated", False) else ()
        profile = image.info.get("icc_profile")
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):
            # PIL would clip these to white. Integers are taken for 16-bit, floats for the range from 0 to 1.
            values = np.asarray(image, np.float64) * (255 if image.mode == "F" else 255 / 65535)
            image = Image.fromarray(np.rint(np.clip(np.nan_to_num(values), 0, 255)).astype(np.uint8))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            # Transparent pixels often hide black; white is what every viewer shows behind them.
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            image = image.convert("RGB")
        return np.array(_to_srgb(image, profile).convert("RGB")), notes


def decode(source: Source, *, what: str) -> Picture:
    """Read an image where it is of no interest what was left out of it; see `read`."""
    return read(source, what=what)[0]


def size(source: Source, *, what: str) -> tuple[int, int]:
    """Give an image's (height, width) as `read` will, from its header alone; the bytes may end after it."""
    with _opened(source, what) as image:
        width, height = image.size
        # Of other formats the orientation may stand behind the pixels, and hardly any file has one.
        turned = image.format == "JPEG" and image.getexif().get(_ORIENTATION, 1) >= 5
        return (width, height) if turned else (height, width)


@contextlib.contextmanager
def _opened(source: Source, what: str) -> Iterator[Image.Image]:
    """Open an image whose size is allowed; whatever is wrong with it becomes a BadExample."""
    try:
        with contextlib.ExitStack() as stack:
            image = source
            if not isinstance(source, Image.Image):
                image = stack.enter_context(Image.open(io.BytesIO(source) if isinstance(source, bytes) else source))
            width, height = image.size
            if not width or not height:
                raise BadExample(f"{what} has no pixels; replace or remove it")
            if width * height > MAX_PIXELS:
                raise BadExample(f"{what} has {width} x {height} pixels; the limit is {MAX_PIXELS} in all: shrink it")
            yield image
    except FileNotFoundError:
        raise BadExample(f"{what} does not exist; check the path") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadExample(f"{what} has too many pixels; the limit is {MAX_PIXELS} in all: shrink it") from error
    except BadExample:
        raise
    except BROKEN as error:
        # PIL names an object in memory here, which nobody knows.
        reason = "no known kind of image" if isinstance(error, UnidentifiedImageError) else error
        empty = source == b"" or (isinstance(source, Path) and not source.stat().st_size)
        reason = "is empty" if empty else f"cannot be decoded ({reason})"
        raise BadExample(f"{what} {reason}; replace or remove it") from error


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


def square(picture: Picture, number: int, *, what: str) -> Picture:
    """Give the left (0) or right (1) of two squares side by side, with the same margin around and between them.

    With margin m and side s the picture is 2 s + 3 m wide and s + 2 m high, so its size tells both.
    """
    height, width = picture.shape[:2]
    margin = 2 * height - width
    side = height - 2 * margin
    if margin < 0 or side < 1:
        raise BadExample(f"{what} is {width} x {height}, which two squares side by side are not: remove it.")
    left = margin + number * (side + margin)
    return picture[margin : margin + side, left : left + side]


def encode_png(image: Picture) -> bytes:
    """Encode an image losslessly."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def cover(image: Picture, size: tuple[int, int]) -> Picture:
    """Resize until `size` is covered, then crop the centre; the same image comes back when it already fits."""
    if image.shape[:2] == tuple(size):
        return image
    height, width = size
    fitted = ImageOps.fit(Image.fromarray(image), (width, height), Image.Resampling.LANCZOS)
    return np.asarray(fitted)


def squash(image: Picture, size: tuple[int, int]) -> Picture:
    """Resize to `size` without keeping the aspect ratio, as SigLIP's image processor does."""
    if image.shape[:2] == tuple(size):
        return image
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
