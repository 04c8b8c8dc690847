# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Shared tools of the painters: compositing, and textures as coverage masks (0..1 per pixel).

Textures are defined in canvas coordinates, independent of the subject's pose, like a print screen.
"""

import functools

import numpy as np
from jaxtyping import Float32

from uso_jax.data.drawings.canvas import Canvas, Points
from uso_jax.data.drawings.look import DrawingStyle
from uso_jax.data.drawings.palette import RGB

Colours = Float32[np.ndarray, "n 3"]
Real = float | np.floating
NIGHT: RGB = (0.03, 0.02, 0.08)


def rgb(colour: RGB) -> Float32[np.ndarray, "3"]:
    """Convert a colour to an array."""
    return np.array(colour, np.float32)


def over(base: RGB | Colours, colour: RGB, cover: Points) -> Colours:
    """Composite `colour` over `base` with opacity `cover`."""
    base = base if isinstance(base, np.ndarray) else rgb(base)
    return base + (rgb(colour) - base) * cover[:, None]


def across(canvas: Canvas, angle: Real, period: Real, phase: Real = 0.0) -> Points:
    """Return the phase, in periods, along the direction `angle` (radians)."""
    c, s = np.float32(np.cos(angle) / period), np.float32(np.sin(angle) / period)
    return canvas.x * c + canvas.y * s + np.float32(phase)


def lines(canvas: Canvas, phase: Points, share: Real | Points, period: Real) -> Points:
    """Return the coverage of stripes that fill `share` of each period; `share` may vary per point."""
    off = np.abs(phase - np.floor(phase) - np.float32(0.5))
    return canvas.cover((off - share * np.float32(0.5)) * np.float32(period))


def dots(canvas: Canvas, style: DrawingStyle, period: Real, radius: Real | Points) -> Points:
    """Return the coverage of a rotated screen of discs; `radius` is in periods and may vary per point."""
    u, v = (across(canvas, style.angle + turn, period, style.phase) for turn in (0.0, np.pi / 2))
    off = np.hypot(u - np.floor(u) - np.float32(0.5), v - np.floor(v) - np.float32(0.5))
    return canvas.cover((off - radius) * np.float32(period))


def wrap(phase: Points) -> Points:
    """Return the fractional part of a phase, 0..1."""
    return phase - np.floor(phase)


def scatter(column: Points, row: Points, salt: float = 0.0) -> Points:
    """Return a pseudo-random number in 0..1 for each (column, row) cell."""
    mixed = np.sin(column * np.float32(12.9898) + row * np.float32(78.233) + np.float32(salt)) * np.float32(43.7585)
    return mixed - np.floor(mixed)


@functools.lru_cache(maxsize=64)
def noise(size: int, cells: int, seed: int) -> Points:
    """Return fixed white noise per cell, 0..1, enlarged to the canvas."""
    values = np.random.default_rng(seed).random((cells, cells), np.float32)
    index = np.arange(size) * cells // size
    return _fixed(values[np.ix_(index, index)].ravel())


@functools.lru_cache(maxsize=64)
def clouds(size: int, cells: int, seed: int) -> Points:
    """Return fixed smooth value noise, 0..1, with `cells` cells across."""
    values = np.random.default_rng(seed).random((cells + 1, cells + 1), np.float32)
    place = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(cells / size)
    low = place.astype(int)
    share = place - np.floor(place)
    share = share * share * (3 - 2 * share)
    rows = values[low] + (values[low + 1] - values[low]) * share[:, None]
    return _fixed((rows[:, low] + (rows[:, low + 1] - rows[:, low]) * share[None]).ravel())


def _fixed(values: Points) -> Points:
    values.flags.writeable = False  # shared by every image of this size
    return values
