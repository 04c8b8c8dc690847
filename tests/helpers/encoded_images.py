# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Encoded images for tests: every format, EXIF orientations, and PNG files made by hand."""

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image

from uso_jax.images import opening

ORIENTED = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "AVIF", *(["HEIF"] if "HEIF" in opening.FORMATS else []))
KINDS = (*ORIENTED, "GIF", "BMP")
_LOSSLESS = {"WEBP": {"lossless": True}}


def encode(image: Image.Image, kind: str, orientation: int = 1, **options) -> bytes:
    """Encode an image, with an EXIF block if the orientation is not 1."""
    options = _LOSSLESS.get(kind, {}) | options
    if orientation != 1:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif.tobytes()
    if kind == "MPO":
        options |= {"save_all": True, "append_images": [image.copy()]}
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@functools.cache
def sample(kind: str) -> bytes:
    """Return a small image with an EXIF block where the format has one."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (17, 23, 3), np.uint8))
    return encode(image, kind, 6 if kind in ORIENTED else 1)


def chunk(name: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))


def png(depth: int, colour: int, rows: list[bytes], width: int, chunks: bytes = b"") -> bytes:
    """Return a PNG of any bit depth and colour type, from its rows of samples."""
    header = chunk(b"IHDR", struct.pack(">LLBBBBB", width, len(rows), depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + pixels + chunk(b"IEND", b"")
