# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Shapes from rasters: the signed distance of what a mask covers."""

import numpy as np
from jaxtyping import Bool, Float32
from scipy import ndimage

from uso_jax.data.shapes import Real, Shape


def distance_field(mask: Bool[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Give the signed distance of every point to the edge of the mask, in points: negative inside."""
    # The edge lies halfway between a point inside and its neighbour outside.
    outside = ndimage.distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, float(sum(mask.shape)))
    return (outside - ndimage.distance_transform_edt(mask) + np.where(mask, 0.5, -0.5)).astype(np.float32)


def mask_shape(mask: Bool[np.ndarray, "h w"], x: Real, y: Real, unit: Real) -> Shape:
    """Make a shape from a mask: column x and row y of it come to the origin, `unit` points are 1 long, y is up.

    The distances are worked out when they are first asked for.
    """
    field: list[np.ndarray] = []

    def distance(px, py):
        if not field:
            field.append(distance_field(mask))
        rows, columns = y - np.asarray(py) * unit, x + np.asarray(px) * unit
        limits = (mask.shape[0] - 1, mask.shape[1] - 1)
        inside = (rows.clip(0, limits[0]), columns.clip(0, limits[1]))
        beyond = np.hypot(rows - inside[0], columns - inside[1])
        return (ndimage.map_coordinates(field[0], inside, order=1) + beyond) / unit

    return Shape(distance)


def fit(mask: Bool[np.ndarray, "h w"]) -> tuple[float, float, float]:
    """Give column, row and radius of a circle around what the mask covers."""
    rows, columns = np.nonzero(mask)
    x, y = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
    return float(x), float(y), float(np.hypot(columns - x, rows - y).max() + 1.0)
