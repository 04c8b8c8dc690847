# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The one way in for encoded images: which formats are read, how large they may be, and which way up they are.

All limits are checked on the header, before pixel memory is taken. Nothing else calls PIL's `Image.open`.
"""

import contextlib
import functools
import io
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageChops, UnidentifiedImageError

from uso_jax.common.errors import BadExample
from uso_jax.images import tags

# PIL's other readers start programs (EPS), take memory while they read the header (ICO), or are rarely used.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # PIL counts MPO, of phones, as JPEG
with contextlib.suppress(ImportError):  # the extra "heic"
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
    FORMATS += ("HEIF",)

_TILE = (322, 323)  # TIFF tags: width and height of a tile
_SCALES = {"L;2": 85, "L;4": 17}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Limits:
    """The largest image that is read.

    Attributes:
      pixels: width x height.
      file_bytes: of the encoded image.
    """

    pixels: int
    file_bytes: int


FILES = Limits(pixels=64_000_000, file_bytes=1 << 30)
UPLOADS = Limits(pixels=16_777_216, file_bytes=32 << 20)  # decoding takes up to 16 bytes a pixel


@dataclass(frozen=True)
class Opened:
    """A decoded image, upright, in the colours of its file.

    Attributes:
      image: in any mode of PIL.
      orientation: of the file, 1 to 8, as EXIF numbers them; it is applied already.
      deep: whether the file has more than 8 bits a channel; PIL drops those beyond 8 of coloured ones.
      animated: whether the file holds more frames or pages.
    """

    image: Image.Image
    orientation: int = 1
    deep: bool = False
    animated: bool = False


def open_image(source: bytes | Path | Image.Image, *, what: str, limits: Limits = FILES) -> Opened:
    """Decode the first frame of an encoded image and turn it upright.

    Args:
      source: a file, its bytes, or an image that PIL has opened, which stays as it is.
      what: names the image in messages.
      limits: the largest image that is allowed.

    Raises:
      BadExample: the source is not an image of an allowed format, is damaged, or is too large.
    """
    with _header(source, what, limits) as image:
        # The second image of a phone's MPO is a map of brightness or depth.
        animated = bool(image.format != "MPO" and getattr(image, "is_animated", False))
        orientation, turned, samples = _orientation(image), image.format == "TIFF", _samples(image)
        image = image.copy() if image is source else image
        image.load()
        if not turned:  # PIL turns TIFF while it decodes it
            orientation = _orientation(image)  # a PNG may hold it after the pixels
        if isinstance(source, bytes | Path) and "transparency" in image.info:
            image = _with_true_transparency(image, samples, lambda: _header(source, what, limits))
        if orientation > 1 and not turned:
            image = image.transpose(_TURNS[orientation])
    return Opened(image, orientation, image.mode.startswith(("I", "F")) or "16" in samples, animated)


def image_size(source: bytes | Path, *, what: str, limits: Limits = FILES) -> tuple[int, int]:
    """Return the (height, width) of the image that `open_image` returns, from the header alone.

    Raises:
      BadExample: the source is not an image of an allowed format, or is too large.
    """
    with _header(source, what, limits) as image:
        width, height = image.size
        turned = image.format != "TIFF" and _orientation(image) >= 5
        return (width, height) if turned else (height, width)


def check_size(size: tuple[int, int], what: str, limits: Limits = FILES) -> None:
    """Raise BadExample if an image of (width, height) has no pixels or too many."""
    width, height = size
    if not width or not height:
        raise BadExample(f"{what} has no pixels; replace or remove it")
    if width * height > limits.pixels:
        raise BadExample(f"{what} has {width} x {height} pixels; the limit is {limits.pixels}: shrink it")


def read_file(path: Path, *, what: str, limits: Limits = FILES) -> bytes:
    """Return the bytes of an image file. A pipe or a device is refused: reading it would block, or never end.

    Raises:
      BadExample: the file does not exist, cannot be read, is not a regular file, or is too large.
    """
    try:
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(number, "rb") as file:
            found = os.fstat(number)
            if not stat.S_ISREG(found.st_mode):
                raise BadExample(f"{what} is not a file; check the path")
            _check_bytes(found.st_size, what, limits)
            return file.read(limits.file_bytes)
    except FileNotFoundError:
        raise BadExample(f"{what} does not exist; check the path") from None
    except IsADirectoryError:
        raise BadExample(f"{what} is not a file; check the path") from None
    except OSError as error:
        raise BadExample(f"{what} cannot be read: {error.strerror}; check its permissions") from error


def _check_bytes(count: int, what: str, limits: Limits) -> None:
    if count > limits.file_bytes:
        raise BadExample(f"{what} has {count} bytes; the limit is {limits.file_bytes}: shrink it")


@contextlib.contextmanager
def _header(source: bytes | Path | Image.Image, what: str, limits: Limits) -> Iterator[Image.Image]:
    """Open an image of an allowed size, without decoding it.

    What decoders raise for damaged files is not documented, so anything that is raised inside becomes a BadExample.
    """
    data = source
    try:
        with contextlib.ExitStack() as stack:
            image = source
            if not isinstance(source, Image.Image):
                data = source if isinstance(source, bytes) else read_file(source, what=what, limits=limits)
                _check_bytes(len(data), what, limits)
                tags.check(data, what)
                image = stack.enter_context(Image.open(io.BytesIO(data), formats=FORMATS))
                _check_tiles(image, what, limits)
            check_size(image.size, what, limits)
            yield image
    except BadExample:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadExample(f"{what} has too many pixels; the limit is {limits.pixels}: shrink it") from error
    except Exception as error:
        # PIL's message names an object in memory, which tells the user nothing.
        unknown = isinstance(error, UnidentifiedImageError)
        reason = f"unknown image format; {', '.join(FORMATS)} are read" if unknown else error or type(error).__name__
        reason = "is empty" if data == b"" else f"cannot be decoded ({reason})"
        raise BadExample(f"{what} {reason}; replace or remove it") from error


def _check_tiles(image: Image.Image, what: str, limits: Limits) -> None:
    """Refuse TIFF tiles that are too large: each is decoded whole, even if the image is smaller."""
    width, height = (getattr(image, "tag_v2", {}).get(name, 1) for name in _TILE)
    if type(width) is not int or type(height) is not int or width * height > limits.pixels:
        raise BadExample(f"{what} has tiles of {width} x {height} pixels; the limit is {limits.pixels}")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, or 1 if there is none that is valid."""
    try:
        # PIL's own method for PNG would decode the pixels first.
        found = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
        return int(found) if found in _TURNS else 1
    except Exception:  # a damaged EXIF block does not make an image unreadable
        return 1


def _samples(image: Image.Image) -> str:
    """Return how PIL names the samples of a file, such as "RGB;16B"; only PNG and TIFF have several depths."""
    if image.format not in ("PNG", "TIFF") or not image.tile:
        return ""
    args = image.tile[0][3]
    return args if isinstance(args, str) else str(args[0])


def _with_true_transparency(image, samples: str, again: Callable[[], Any]) -> Image.Image:
    """Correct what PIL does with the level or colour that a PNG declares transparent, at other depths than 8 bits."""
    hidden = image.info["transparency"]
    if samples in _SCALES and isinstance(hidden, int):
        image.info["transparency"] = hidden * _SCALES[samples]  # PIL scales the pixels, but not this level
    elif samples == "RGB;16B" and isinstance(hidden, tuple):
        # PIL keeps the high bytes of the pixels; here are the low ones.
        with again() as low:
            low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
            low.load()
            parts = zip(image.split(), low.split(), hidden, strict=True)
            same = [
                part.point([255 * (i == level) for i in range(256)])
                for high, lower, value in parts
                for part, level in ((high, value >> 8), (lower, value & 255))
            ]
        image.putalpha(ImageChops.invert(functools.reduce(ImageChops.darker, same)))
        del image.info["transparency"]
    return image
