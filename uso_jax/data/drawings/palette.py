# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Named colours, legible pairs of them, and small random variations."""

import functools

import numpy as np

RGB = tuple[float, float, float]  # 0..1

COLOURS: dict[str, RGB] = {
    "red": (0.86, 0.14, 0.16),
    "orange": (0.96, 0.52, 0.10),
    "yellow": (0.98, 0.86, 0.22),
    "green": (0.20, 0.66, 0.26),
    "teal": (0.08, 0.62, 0.62),
    "blue": (0.15, 0.34, 0.84),
    "purple": (0.50, 0.22, 0.70),
    "pink": (0.97, 0.58, 0.74),
    "brown": (0.46, 0.28, 0.14),
    "gray": (0.58, 0.60, 0.62),
    "black": (0.08, 0.08, 0.10),
    "white": (0.96, 0.96, 0.94),
}
NAMES = tuple(COLOURS)
LEGIBLE = 0.42  # least contrast of two colours that are distinguishable at 32 pixels


def luma(colour: RGB) -> float:
    """Return the perceived brightness, 0..1."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def contrast(a: RGB, b: RGB) -> float:
    """Return the perceived contrast of two colours. Brightness dominates, since thin textures lose hue first."""
    chroma = sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) ** 0.5
    return 1.4 * abs(luma(a) - luma(b)) + 0.45 * chroma


@functools.cache
def pairs() -> tuple[tuple[str, str], ...]:
    """Return the (fill, background) pairs that are legible at 32 pixels."""
    return tuple((f, g) for f in NAMES for g in NAMES if f != g and contrast(COLOURS[f], COLOURS[g]) > LEGIBLE)


def vary(rng: np.random.Generator, colour: RGB, amount: float = 0.06) -> RGB:
    """Perturb a colour, so that a name stands for a region and not for a point."""
    r, g, b = (np.array(colour) + rng.uniform(-amount, amount, 3)).clip(0.0, 1.0).tolist()
    return r, g, b


def blend(a: RGB, b: RGB, t: float) -> RGB:
    """Interpolate linearly from a (t = 0) to b (t = 1)."""
    return tuple(p + (q - p) * t for p, q in zip(a, b, strict=True))


def ink_for(fill: RGB, ground: RGB) -> RGB:
    """Return the dark or light line colour, whichever contrasts better with fill and background."""
    dark, light = (0.07, 0.06, 0.11), (0.97, 0.97, 0.95)
    return max((dark, light), key=lambda ink: min(contrast(ink, fill), 1.3 * contrast(ink, ground)))
