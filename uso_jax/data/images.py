# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images as uint8 arrays: decoding, encoding, and the two ways a condition is resized.

Pictures are uint8 [height, width, 3]. Sizes are always (height, width).
"""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from uso_jax.errors import InputError

Picture = UInt8[np.ndarray, "_ _ 3"]

MAX_PIXELS = 64_000_000  # checked on the header, before any pixel memory is taken
BROKEN = (OSError, SyntaxError, ValueError)  # what PIL raises for files that are no pictures


def read(source: bytes | Path | Image.Image, *, what: str) -> tuple[Picture, tuple[str, ...]]:
    """Read an image file, its bytes, or what PIL has opened; give RGB, and in sentences what was left out of it.

    Raises:
      InputError: it is no picture, or too large; the message calls it `what`.
    """
    try:
        if isinstance(source, Image.Image):
            return _rgb(source, what)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            return _rgb(opened, what)
    except FileNotFoundError:
        raise InputError(f"{what} does not exist; check the path") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{what} has too many pixels; the limit is {MAX_PIXELS} in all: shrink it") from error
    except InputError:
        raise
    except BROKEN as error:
        # PIL names an object in memory here, which nobody knows.
        reason = "no known kind of image" if isinstance(error, UnidentifiedImageError) else error
        empty = source == b"" or (isinstance(source, Path) and not source.stat().st_size)
        reason = "is empty" if empty else f"cannot be decoded ({reason})"
        raise InputError(f"{what} {reason}; replace or remove it") from error


def decode(source: bytes | Path, *, what: str) -> Picture:
    """Read an image where it is of no interest what was left out of it; see `read`."""
    return read(source, what=what)[0]


def _rgb(image: Image.Image, what: str) -> tuple[Picture, tuple[str, ...]]:
    """Give the RGB bytes of any kind of picture: upright, on white, the first of several frames, which is said."""
    width, height = image.size
    if not width or not height:
        raise InputError(f"{what} has no pixels; replace or remove it")
    if width * height > MAX_PIXELS:
        raise InputError(f"{what} has {width} x {height} pixels; the limit is {MAX_PIXELS} in all: shrink it")
    notes = (f"{what} is animated: only its first frame is used",) if getattr(image, "is_animated", False) else ()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        # PIL would clip these to white. Integers are taken for 16-bit, floats for the range from 0 to 1.
        values = np.asarray(image, np.float64) * (255 if image.mode == "F" else 255 / 65535)
        image = Image.fromarray(np.rint(np.clip(np.nan_to_num(values), 0, 255)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        # Transparent pixels often hide black; white is what every viewer shows behind them.
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert("RGB")), notes


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
