# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images as uint8 arrays: decoding, encoding, and the two ways a condition is resized.

Pictures are uint8 [height, width, 3]. Sizes are always (height, width).
"""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from uso_jax.errors import InputError

Picture = UInt8[np.ndarray, "_ _ 3"]

MAX_PIXELS = 64_000_000  # checked on the header, before any pixel memory is taken


def decode(data: bytes | Path, *, what: str) -> Picture:
    """Decode an image file or its bytes to RGB, with the EXIF orientation applied.

    `what` names the image in the InputError that is raised when it does not decode.
    """
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise InputError(f"{what} has {width} x {height} pixels; the limit is {MAX_PIXELS} in all: shrink it.")
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                # Transparent pixels often hide black; white is what every viewer shows behind them.
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return np.array(image.convert("RGB"))
    except FileNotFoundError:
        raise InputError(f"{what} does not exist: check the path.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what} is not an image that can be decoded ({error}): replace or remove it.") from error


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
