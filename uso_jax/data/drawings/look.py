# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Drawing styles: a name, a palette and continuous texture parameters, and which of these are held out of training.

Held out are whole families (HELDOUT_FAMILIES), about a quarter of the (style, fill, background) combinations, and a
band in the middle of the ranges of period and angle (RANGES, BAND).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uso_jax.data.drawings import palette
from uso_jax.data.drawings.palette import RGB
from uso_jax.data.drawings.subjects import Subject

PLAIN = "plain"
WHITE: RGB = (0.98, 0.98, 0.96)

# The plain look is not a drawing style. It comes last because classifiers need a label for it too.
FAMILIES: dict[str, tuple[str, ...]] = {
    "flat": ("flat", "split", "cel"),
    "line": ("outline", "sketch", "ripple"),
    "hatching": ("hatching", "crosshatch", "engraving"),
    "screen": ("halftone", "polka", "stipple"),
    "grid": ("pixel", "mosaic", "cross-stitch"),
    "pattern": ("stripes", "checker", "rays"),
    "light": ("neon", "spotlight", "glow"),
    "paper": ("shadow", "sticker", "paper cut"),
    "wet": ("watercolor", "ink wash"),
    "facet": ("low-poly", "stained glass"),
    "relief": ("emboss", "gradient", "clay"),
    "glitch": ("glitch", "misprint", "scanlines"),
    PLAIN: (PLAIN,),
}
# Their elements (strokes, tiles) occur in other families, so a style image of them can be followed.
HELDOUT_FAMILIES = ("hatching", "facet")
FAMILY_OF = {name: family for family, names in FAMILIES.items() for name in names}
STYLE_NAMES = tuple(name for name in FAMILY_OF if name != PLAIN)

# Canvas units, radians; the canvas is 2 wide.
RANGES = {"period": (0.35, 0.53), "angle": (0.2, 1.37), "weight": (0.11, 0.17), "phase": (0.0, 1.0)}
BAND = (0.4, 0.6)  # held-out part of the ranges of period and angle


@dataclass(frozen=True)
class DrawingStyle:
    """A drawing style with palette and texture: the inputs of a painter besides the posed subject.

    `ground` is the background colour. `period` is the size of a texture element, `angle` its direction, `weight` the
    width of a line or the length of a shadow, and `phase` the offset of the texture in periods.
    """

    name: str
    fill: RGB
    ground: RGB
    ink: RGB
    fill_name: str
    ground_name: str
    period: float = 0.4
    angle: float = 0.8
    weight: float = 0.12
    phase: float = 0.0

    @property
    def family(self) -> str:
        """Family of the style."""
        return FAMILY_OF[self.name]

    @property
    def words(self) -> str:
        """Caption of the style, such as "halftone style, blue on yellow"."""
        return f"{self.name} style, {self.fill_name} on {self.ground_name}"

    @property
    def is_heldout(self) -> bool:
        """Whether the style is held out of training."""
        in_band = any(_in_band(name, getattr(self, name)) for name in ("period", "angle"))
        held_pair = (self.fill_name, self.ground_name) in combinations(self.name, True)
        return self.name != PLAIN and (self.family in HELDOUT_FAMILIES or held_pair or in_band)

    @classmethod
    def draw(cls, rng: np.random.Generator, names: Sequence[str], *, heldout: bool) -> "DrawingStyle":
        """Sample a style with one of the names, its colours and texture both held out or both not."""
        name = names[rng.integers(len(names))]
        choices = combinations(name, heldout)
        fill_name, ground_name = choices[rng.integers(len(choices))]
        fill, ground = palette.vary(rng, palette.COLOURS[fill_name]), palette.vary(rng, palette.COLOURS[ground_name])
        period, angle, weight, phase = rng.random(4).tolist()
        return cls(
            name,
            fill,
            ground,
            palette.ink_for(fill, ground),
            fill_name,
            ground_name,
            period=_between("period", _outside_band(period, heldout)),
            angle=_between("angle", _outside_band(angle, heldout)),
            weight=_between("weight", weight),
            phase=_between("phase", phase),
        )

    @classmethod
    def plain(cls, rng: np.random.Generator, subject: Subject) -> "DrawingStyle":
        """Sample the subject's plain look: its natural colours on a contrasting background."""
        base = palette.COLOURS[subject.fill]
        names = tuple(n for n in palette.NAMES if palette.contrast(base, palette.COLOURS[n]) > palette.LEGIBLE)
        name = names[rng.integers(len(names))]
        ground = palette.blend(palette.vary(rng, palette.COLOURS[name]), WHITE, 0.25)
        fill, ink = palette.vary(rng, base), palette.vary(rng, palette.COLOURS[subject.ink])
        return cls(PLAIN, fill, ground, ink, subject.fill, name)


@functools.cache
def combinations(name: str, heldout: bool) -> tuple[tuple[str, str], ...]:
    """Return the (fill, background) pairs of a style that are held out of training (about a quarter), or the others.

    Every pair is seen with some style; only the combination with this style is held out.
    """
    index = list(FAMILY_OF).index(name)
    return tuple(pair for number, pair in enumerate(palette.pairs()) if ((number + 3 * index) % 4 == 0) is heldout)


def _between(name: str, share: float) -> float:
    low, high = RANGES[name]
    return low + share * (high - low)


def _in_band(name: str, value: float) -> bool:
    return _between(name, BAND[0]) <= value < _between(name, BAND[1])


def _outside_band(share: float, heldout: bool) -> float:
    """Map a fraction of the range into the held-out band, or into the rest of the range."""
    low, high = BAND
    if heldout:
        # A margin of 0.001 keeps rounding from moving a value over the edge, here and below.
        return low + (0.001 + 0.998 * share) * (high - low)
    share *= 0.999 * (1.0 - (high - low))
    return share if share < low - 0.001 else share + high - low + 0.001
