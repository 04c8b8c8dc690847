# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Shapes from the symbols of DejaVu Sans, the font that ships with matplotlib.

Matplotlib itself is not imported, since that is slow and writes a font cache.
"""

import functools
import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from uso_jax.common.errors import InputError
from uso_jax.data.drawings.shapes import Shape, fit, mask_shape

FONT = "mpl-data/fonts/ttf/DejaVuSans.ttf"
SIDE = 320  # side of the raster of a glyph in pixels, including a margin


def glyph(symbol: str) -> Shape:
    """Return the inked part of a symbol, scaled to the unit circle."""
    return _lazy(symbol, filled=False)


def outline(symbol: str) -> Shape:
    """Return a symbol with its holes filled."""
    return _lazy(symbol, filled=True)


def holes(symbol: str) -> Shape:
    """Return the holes of a symbol: `outline` without `glyph`."""
    return outline(symbol) - glyph(symbol)


def _lazy(symbol: str, filled: bool) -> Shape:
    # Opens the font when the first symbol is drawn, not when the subjects are listed.
    return Shape(lambda x, y: _shape(symbol, filled).distance(x, y))


@functools.cache
def _shape(symbol: str, filled: bool) -> Shape:
    mask = _mask(symbol)
    x, y, radius = fit(mask)
    return mask_shape(ndimage.binary_fill_holes(mask) if filled else mask, x, y, radius)


@functools.cache
def _mask(symbol: str) -> Bool[np.ndarray, "h w"]:
    font = _font(SIDE * 3 // 4)
    left, top, right, bottom = font.getbbox(symbol)
    if right <= left or bottom <= top:
        raise InputError(f"DejaVu Sans has no visible glyph for {symbol!r}.")
    image = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8))
    ImageDraw.Draw(image).text((4 - left, 4 - top), symbol, fill=255, font=font)
    return np.asarray(image) > 127


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    package = importlib.util.find_spec("matplotlib")
    path = Path(package.origin).parent / FONT if package else Path(FONT)
    if not path.exists():
        raise InputError(f"{path} does not exist: install matplotlib, which provides the font of the symbols.")
    return ImageFont.truetype(str(path), size)
