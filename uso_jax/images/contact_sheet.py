# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Contact sheets: rows of images under column titles."""

import pathlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from uso_jax.common import atomic_files

COLUMNS = "columns.npz"  # in a workdir: all images behind its sheets before_after*.png, keyed by "table/column"

_GAP, _BACKGROUND, _INK = 6, (255, 255, 255), (40, 40, 40)


def draw(columns: Mapping[str, UInt8[np.ndarray, "n _ _ 3"]], cell: int = 128) -> Image.Image:
    """Draw one row per example and one titled column per entry. Small images are enlarged by nearest neighbour."""
    rows = max(len(images) for images in columns.values())
    title = 22
    width = _GAP + len(columns) * (cell + _GAP)
    sheet = Image.new("RGB", (width, title + _GAP + rows * (cell + _GAP)), _BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, (name, images) in enumerate(columns.items()):
        x = _GAP + i * (cell + _GAP)
        pen.text((x + cell // 2, title // 2 + 3), name, fill=_INK, font=font, anchor="mm")
        for j, pixels in enumerate(images):
            enlarge = pixels.shape[0] < cell
            image = Image.fromarray(pixels).resize((cell, cell), Image.NEAREST if enlarge else Image.LANCZOS)
            sheet.paste(image, (x, title + _GAP + j * (cell + _GAP)))
    return sheet


def save(sheet: Image.Image, path: str | pathlib.Path) -> None:
    """Write a PNG atomically."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_files.beside(path) as temporary:
        sheet.save(temporary, "PNG")
