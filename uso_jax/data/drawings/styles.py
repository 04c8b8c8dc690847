# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The table of drawing styles, and `render`, which draws any subject in any style.

To add a style, write a painter in `graphic_painters` or `material_painters`, add a row to _PAINTERS, and add its name
to a family in `look`. Texture elements of `period` canvas units (the canvas is 2 wide) are about 6 pixels at size 32;
smaller ones would blur to gray.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from uso_jax.data.drawings import graphic_painters, material_painters
from uso_jax.data.drawings.brush import Colours
from uso_jax.data.drawings.canvas import Canvas, Pose
from uso_jax.data.drawings.look import FAMILY_OF, PLAIN, DrawingStyle
from uso_jax.data.drawings.subjects import Subject

_PAINTERS: dict[str, Callable[[Canvas, DrawingStyle], Colours]] = {
    "flat": graphic_painters.flat,
    "split": graphic_painters.split,
    "cel": graphic_painters.cel,
    "outline": graphic_painters.outline,
    "sketch": graphic_painters.sketch,
    "ripple": graphic_painters.ripple,
    "hatching": graphic_painters.hatching,
    "crosshatch": graphic_painters.crosshatch,
    "engraving": graphic_painters.engraving,
    "halftone": graphic_painters.halftone,
    "polka": graphic_painters.polka,
    "stipple": graphic_painters.stipple,
    "pixel": graphic_painters.pixel,
    "mosaic": graphic_painters.mosaic,
    "cross-stitch": graphic_painters.cross_stitch,
    "stripes": graphic_painters.stripes,
    "checker": graphic_painters.checker,
    "rays": graphic_painters.rays,
    "neon": material_painters.neon,
    "spotlight": material_painters.spotlight,
    "glow": material_painters.glow,
    "shadow": material_painters.shadow,
    "sticker": material_painters.sticker,
    "paper cut": material_painters.paper_cut,
    "watercolor": material_painters.watercolor,
    "ink wash": material_painters.ink_wash,
    "low-poly": material_painters.low_poly,
    "stained glass": material_painters.stained_glass,
    "emboss": material_painters.emboss,
    "gradient": material_painters.gradient,
    "clay": material_painters.clay,
    "glitch": material_painters.glitch,
    "misprint": material_painters.misprint,
    "scanlines": material_painters.scanlines,
    PLAIN: material_painters.plain,
}
# In the order of the families. The index of a name is its label.
STYLES = {name: _PAINTERS[name] for name in FAMILY_OF}


def render(subject: Subject, pose: Pose, style: DrawingStyle, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Draw the subject in a pose and style. The result is deterministic."""
    painted = STYLES[style.name](Canvas(subject, pose, size), style)
    return (painted.clip(0.0, 1.0) * np.float32(255.0) + np.float32(0.5)).astype(np.uint8).reshape(size, size, 3)
