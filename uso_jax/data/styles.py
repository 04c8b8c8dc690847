# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The table of drawing styles, and `render`, which draws any subject in any of them.

Add a style by adding a painter to `graphic` or `material`, a row to STYLES and its name to a family in `look`.
`period` is the size of one texture element in canvas units (the canvas is 2 wide): about 6 pixels at 32, since less
would be gray there.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from uso_jax.data import graphic, material
from uso_jax.data.brush import Colours
from uso_jax.data.canvas import Canvas, Pose
from uso_jax.data.look import (
    FAMILIES,
    FAMILY_OF,
    HELDOUT_FAMILIES,
    PLAIN,
    STYLE_NAMES,
    Style,
    combinations,
)
from uso_jax.data.subjects import Subject

__all__ = [
    "FAMILIES",
    "HELDOUT_FAMILIES",
    "PLAIN",
    "STYLES",
    "STYLE_NAMES",
    "Style",
    "combinations",
    "render",
]

_PAINTERS: dict[str, Callable[[Canvas, Style], Colours]] = {
    "flat": graphic.flat,
    "split": graphic.split,
    "cel": graphic.cel,
    "outline": graphic.outline,
    "sketch": graphic.sketch,
    "ripple": graphic.ripple,
    "hatching": graphic.hatching,
    "crosshatch": graphic.crosshatch,
    "engraving": graphic.engraving,
    "halftone": graphic.halftone,
    "polka": graphic.polka,
    "stipple": graphic.stipple,
    "pixel": graphic.pixel,
    "mosaic": graphic.mosaic,
    "cross-stitch": graphic.cross_stitch,
    "stripes": graphic.stripes,
    "checker": graphic.checker,
    "rays": graphic.rays,
    "neon": material.neon,
    "spotlight": material.spotlight,
    "glow": material.glow,
    "shadow": material.shadow,
    "sticker": material.sticker,
    "paper cut": material.paper_cut,
    "watercolor": material.watercolor,
    "ink wash": material.ink_wash,
    "low-poly": material.low_poly,
    "stained glass": material.stained_glass,
    "emboss": material.emboss,
    "gradient": material.gradient,
    "clay": material.clay,
    "glitch": material.glitch,
    "misprint": material.misprint,
    "scanlines": material.scanlines,
    PLAIN: material.plain,
}
# In the order of the families; the index of a name is its label.
STYLES = {name: _PAINTERS[name] for name in FAMILY_OF}


def render(subject: Subject, pose: Pose, style: Style, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Draw the subject in the pose and the style: the same arguments always give the same picture."""
    painted = STYLES[style.name](Canvas(subject, pose, size), style)
    return (painted.clip(0.0, 1.0) * np.float32(255.0) + np.float32(0.5)).astype(np.uint8).reshape(size, size, 3)
