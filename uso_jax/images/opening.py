# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The one way in for encoded images: which formats are read, how large they may be, and which way up they are.

All limits are checked on the header, before pixel memory is taken. Nothing else calls PIL's `Image.open`.
"""

import contextlib
import io
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
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

    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
    FORMATS += ("HEIF",)

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
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
# The usual photograph of a phone fits. Decoding takes up to 16 bytes a pixel (WebP), and an image stays at 3.
UPLOADS = Limits(pixels=12_600_000, file_bytes=32 << 20)


@dataclass(frozen=True)
class Opened:
    """A decoded image, upright, in the colours of its file.

    Attributes:
      image: in any mode of PIL.
      orientation: what was applied, 1 to 8, as EXIF numbers them. PIL and libheif apply that of TIFF and HEIC unasked.
      deep: whether the file has more than 8 bits a channel; PIL drops those beyond 8 of coloured ones.
      animated: whether the file holds more frames or pages.
    """

    image: Image.Image
    orientation: int = 1
    deep: bool = False
    animated: bool = False


def open_image(
    source: bytes | Path | Image.Image, *, what: str, limits: Limits = FILES, corrected: bool = True
) -> Opened:
    """Decode the first frame of an encoded image and turn it upright.

    Args:
      source: a file, its bytes, or an image that PIL has opened, which stays as it is.
      what: names the image in messages.
      limits: the largest image that is allowed.
      corrected: False returns what PIL decodes, neither turned nor with its true transparency.

    Raises:
      BadExample: the source is not an image of an allowed format, is damaged, or is too large.
    """
    with _header(source, what, limits) as image:
        # The second image of a phone's MPO is a map of brightness or depth.
        animated = bool(image.format != "MPO" and getattr(image, "is_animated", False))
        samples, orientation, is_tiff = _samples(image), 1, image.format == "TIFF"
        image = image.copy() if image is source else image
        declared = image.size
        image.load()
        if image.size != declared:  # as a damaged HEIC may
            raise BadExample(f"{what} is damaged: {declared} by its header, {image.size} by its pixels; replace it")
        if corrected and "transparency" in image.info:
            again = None if isinstance(source, Image.Image) else lambda: _header(source, what, limits)
            image = _with_true_transparency(image, samples, again)
        if corrected and not is_tiff and (orientation := _orientation(image)) > 1:
            image = image.transpose(_TURNS[orientation])
    return Opened(image, orientation, image.mode.startswith(("I", "F")) or "16" in samples, animated)


def image_size(source: bytes | Path, *, what: str, limits: Limits = FILES, whole: bool = True) -> tuple[int, int]:
    """Return the (height, width) of the image that `open_image` returns, without decoding it.

    Args:
      source: a file or its bytes, which may end after the header.
      what: names the image in messages.
      limits: the largest image that is allowed.
      whole: False if the bytes are only the start of a file.

    Raises:
      BadExample: the source is not an image of an allowed format, or is too large, or its start is not enough.
    """
    data = source if isinstance(source, bytes) else read_file(source, what=what, limits=limits)
    with _header(_without_pixels(data), what, limits) as image:
        width, height = image.size
        orientation = 1 if image.format == "TIFF" else _orientation(image)
        if not whole and image.format == "PNG" and orientation == 1 and width != height:
            raise BadExample(f"the start of {what} does not tell which way up it is; read the whole file")
        return (width, height) if orientation >= 5 else (height, width)


def peculiarities(source: bytes | Path, *, what: str, limits: Limits = FILES) -> tuple[str, ...]:
    """Return what programs that only convert an image to RGB read differently: "orientation", "depth", "transparency".

    They leave images as the camera held it, cut off 16-bit values, and show the colours below transparent pixels.

    Raises:
      BadExample: the source is not an image of an allowed format, or is too large.
    """
    data = source if isinstance(source, bytes) else read_file(source, what=what, limits=limits)
    with _header(_without_pixels(data), what, limits) as image:
        found = {
            "orientation": image.format != "TIFF" and _orientation(image) > 1,
            "depth": image.mode.startswith(("I", "F")) or "16" in _samples(image),
            "transparency": image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info,
        }
    return tuple(name for name, has in found.items() if has)


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


def _without_pixels(data: bytes) -> bytes:
    """Return a PNG without its pixels, because its EXIF block may come after them. Other images stay as they are."""
    if not data.startswith(_PNG):
        return data
    kept, start = [_PNG], len(_PNG)
    while start + 8 <= len(data):
        length, name = struct.unpack_from(">L4s", data, start)
        end = start + length + 12
        if name not in (b"IDAT", b"fdAT") and end <= len(data):
            kept.append(data[start:end])
        start = end
    return b"".join((*kept, _PNG_END))


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


def _with_true_transparency(image: Image.Image, samples: str, again: Callable[[], Any] | None) -> Image.Image:
    """Correct what PIL does with the level or colour that a PNG declares transparent, at other depths than 8 bits.

    Args:
      image: the decoded image.
      samples: see `_samples`.
      again: opens the image again; None if that is not possible.
    """
    hidden = image.info["transparency"]
    if samples in _SCALES and isinstance(hidden, int):
        image.info["transparency"] = hidden * _SCALES[samples]  # PIL scales the pixels, but not this level
    elif image.mode == "RGB" and isinstance(hidden, tuple) and (samples == "RGB;16B" or max(hidden) > 255):
        same = _equals(image, [level >> 8 for level in hidden])
        if again is not None:  # PIL keeps the high bytes of the pixels; here are the low ones
            with again() as low:
                low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
                low.load()
                same = ImageChops.darker(same, _equals(low, [level & 255 for level in hidden]))
        image.putalpha(ImageChops.invert(same))
        del image.info["transparency"]
    return image


def _equals(image: Image.Image, levels: Sequence[int]) -> Image.Image:
    """Return 255 where every channel has its level, and 0 elsewhere."""
    same = Image.new("L", image.size, 255)
    for channel, level in enumerate(levels):
        part = image.getchannel(channel).point([255 * (value == level) for value in range(256)])
        same = ImageChops.darker(same, part)
    return same
