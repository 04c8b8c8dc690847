# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Subjects from images with a transparent background, such as emoji.

`render(subject, pose, style, size)` draws their silhouette and details in any style. With `DrawingStyle.plain` it shows
the original colours on a plain background.
"""

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image
from scipy import ndimage

from uso_jax.common.errors import InputError
from uso_jax.data.drawings import palette
from uso_jax.data.drawings.shapes import NOTHING, fit, mask_shape
from uso_jax.data.drawings.subjects import Artwork, Subject

SIDE = 256  # side of the raster in which distances are measured, in pixels
ARTWORK_SIDE = 128  # side of the stored colours, in pixels
DETAIL = 0.12  # brightness difference, 0..1, from which a region counts as a detail


def subject_from_artwork(rgba: UInt8[np.ndarray, "h w 4"], name: str, *, phrase: str = "") -> Subject:
    """Make a subject from the opaque part of an image, scaled to the unit circle.

    Brightness is split into two classes; the smaller one is the detail. `fill` and `ink` are the palette colours
    nearest to the two classes.

    Raises:
      InputError: fewer than 16 pixels are opaque.
    """
    solid = rgba[..., 3] > 127
    if solid.sum() < 16:
        raise InputError(f"artwork {name!r}: only {solid.sum()} of its {solid.size} pixels are opaque.")
    colours = _squared(rgba, SIDE)
    body = colours[..., 3] > 0.5
    detail = _details(colours, body)
    centre = (SIDE - 1) / 2
    own = [_nearest(colours[part]) for part in (body & ~detail, detail) if part.any()]
    return Subject(
        name,
        phrase or f"{'an' if name[:1].lower() in tuple('aeiou') else 'a'} {name}",
        own[0],
        own[-1],
        mask_shape(body, centre, centre, SIDE / 2),
        mask_shape(detail, centre, centre, SIDE / 2) if detail.any() else NOTHING,
        artwork=_squared(rgba, ARTWORK_SIDE),
    )


def _squared(rgba: UInt8[np.ndarray, "h w 4"], side: int) -> Artwork:
    """Resample the square around the opaque pixels' circle. Alpha is premultiplied, so the background does not leak."""
    x, y, radius = fit(rgba[..., 3] > 127)
    box = (x + 0.5 - radius, y + 0.5 - radius, x + 0.5 + radius, y + 0.5 + radius)
    margin = int(np.ceil(radius))
    image = Image.fromarray(np.pad(rgba, ((margin, margin), (margin, margin), (0, 0)))).convert("RGBa")
    box = tuple(edge + margin for edge in box)
    resized = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized, np.float32) / np.float32(255.0)


def _details(colours: Artwork, body: np.ndarray) -> np.ndarray:
    """Return the mask of the rarer of two brightness classes inside `body`, if it is distinct and large enough."""
    bright = ndimage.gaussian_filter(_luma(colours), SIDE / 128)
    level = _two_classes(bright[body])
    low, high = bright[body] <= level, bright[body] > level
    none = np.zeros_like(body)
    if not low.any() or not high.any() or bright[body][high].mean() - bright[body][low].mean() < DETAIL:
        return none
    detail = body & ((bright <= level) if low.sum() < high.sum() else (bright > level))
    detail = ndimage.binary_opening(detail, iterations=max(1, SIDE // 128))
    return detail if detail.sum() > 0.004 * body.sum() else none


def _luma(colours: Artwork) -> Float32[np.ndarray, "side side"]:
    alpha = np.maximum(colours[..., 3], np.float32(1e-3))
    return (colours[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)) / alpha


def _two_classes(values: np.ndarray) -> float:
    """Return Otsu's threshold: the level that minimises the variance within the two classes."""
    counts, edges = np.histogram(values, 64, (0.0, 1.0))
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    total = np.cumsum(counts * middles)
    gap = total / np.maximum(below, 1) - (total[-1] - total) / np.maximum(above, 1)
    return float(edges[1 + np.argmax(below * above * gap**2)])


def _nearest(colours: np.ndarray) -> str:
    """Return the name of the palette colour nearest to the median of premultiplied colours."""
    middle = np.median(colours[:, :3] / np.maximum(colours[:, 3:], 1e-3), axis=0)
    return min(palette.NAMES, key=lambda name: float(np.abs(np.array(palette.COLOURS[name]) - middle).sum()))
