# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images as files for a judge."""

import io
import pathlib

from PIL import Image

from uso_jax.evaluation.gallery import pixels
from uso_jax.evaluation.protocol import Encoding
from uso_jax.vlm.client import Shown


def encoded(path: str, encoding: Encoding) -> Shown:
    """Return an image file as a judge sees it."""
    decoded = pixels(path)  # also where the file itself is sent: nothing but images leaves this machine
    if encoding.as_file:
        return Shown(pathlib.Path(path).read_bytes(), encoding.detail)
    image = Image.fromarray(decoded)
    size = encoded_size(image.size, encoding)
    buffer = io.BytesIO()
    # Both by PIL's defaults, as in the published code: bicubic, and quality 75.
    (image if size == image.size else image.resize(size)).save(buffer, "JPEG")
    return Shown(buffer.getvalue(), encoding.detail)


def encoded_size(size: tuple[int, int], encoding: Encoding) -> tuple[int, int]:
    """Return the (width, height) that an image of `size` is resized to."""
    if encoding.squash:
        return encoding.squash, encoding.squash
    pixel_count = size[0] * size[1]
    scale = (encoding.most / pixel_count) ** 0.5 if encoding.most and pixel_count > encoding.most else 1.0
    # The published code makes images of less than one multiple empty, and fails.
    width, height = (max(int(side * scale) // encoding.multiple, 1) * encoding.multiple for side in size)
    return width, height
