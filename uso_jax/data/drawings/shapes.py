# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Shapes as signed distance functions: negative inside, positive outside, in a plane with y up.

Primitives (`circle`, `polygon`, ...) and rasters (`mask_shape`) are combined with | (union), & (intersection) and
- (difference). Distances of a combination are exact in sign and zero set and lower bounds in magnitude elsewhere.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32
from scipy import ndimage

Real = float | int
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Shape:
    """A region of the plane, defined by its signed distance function (x, y) -> distance."""

    distance: Distance

    def __or__(self, other: "Shape") -> "Shape":
        return Shape(lambda x, y: np.minimum(self.distance(x, y), other.distance(x, y)))

    def __and__(self, other: "Shape") -> "Shape":
        return Shape(lambda x, y: np.maximum(self.distance(x, y), other.distance(x, y)))

    def __sub__(self, other: "Shape") -> "Shape":
        return Shape(lambda x, y: np.maximum(self.distance(x, y), -other.distance(x, y)))

    def move(self, dx: Real, dy: Real) -> "Shape":
        """Translate right by `dx` and up by `dy`."""
        return Shape(lambda x, y: self.distance(x - dx, y - dy))

    def turn(self, degrees: Real) -> "Shape":
        """Rotate anticlockwise about the origin."""
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        return Shape(lambda x, y: self.distance(c * x + s * y, c * y - s * x))

    def size(self, factor: Real) -> "Shape":
        """Scale about the origin."""
        return Shape(lambda x, y: factor * self.distance(x / factor, y / factor))

    def mirror(self) -> "Shape":
        """Mirror the right half to the left."""
        return Shape(lambda x, y: self.distance(np.abs(x), y))

    def round(self, radius: Real) -> "Shape":
        """Grow by `radius`, which rounds corners."""
        return Shape(lambda x, y: self.distance(x, y) - radius)


NOTHING = Shape(lambda x, y: np.full_like(x, 9.0))


def circle(x: Real, y: Real, r: Real) -> Shape:
    """Return a disc."""
    return Shape(lambda px, py: np.hypot(px - x, py - y) - r)


def ellipse(x: Real, y: Real, rx: Real, ry: Real) -> Shape:
    """Return a filled ellipse. Its distance is a first-order estimate, exact at the edge."""

    def distance(px, py):
        u, v = (px - x) / rx, (py - y) / ry
        k = np.hypot(u, v)
        slope = np.maximum(np.hypot(u / rx, v / ry), 1e-6)
        return np.where(k < 1e-3, -min(rx, ry), k * (k - 1.0) / slope)

    return Shape(distance)


def box(x0: Real, y0: Real, x1: Real, y1: Real, r: Real = 0.0) -> Shape:
    """Return an axis-aligned box from (x0, y0) to (x1, y1) with corners of radius r."""
    cx, cy, hx, hy = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2 - r, (y1 - y0) / 2 - r

    def distance(px, py):
        qx, qy = np.abs(px - cx) - hx, np.abs(py - cy) - hy
        return np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0) - r

    return Shape(distance)


def line(points: Sequence[tuple[Real, Real]], width: Real) -> Shape:
    """Return a polyline of the given width with round caps and joints."""

    def distance(px, py):
        best = np.full_like(px, 9.0)
        for (ax, ay), (bx, by) in itertools.pairwise(points):
            ex, ey = bx - ax, by - ay
            t = np.clip(((px - ax) * ex + (py - ay) * ey) / (ex * ex + ey * ey), 0, 1)
            best = np.minimum(best, np.hypot(px - ax - t * ex, py - ay - t * ey))
        return best - width / 2

    return Shape(distance)


def ring(x: Real, y: Real, r: Real, width: Real) -> Shape:
    """Return a circle drawn with a pen of the given width."""
    return Shape(lambda px, py: np.abs(np.hypot(px - x, py - y) - r) - width / 2)


def arc(x: Real, y: Real, r: Real, start: Real, stop: Real, width: Real) -> Shape:
    """Return a circular arc drawn with a round pen; angles in degrees, anticlockwise from the right."""
    angles = np.deg2rad(np.linspace(start, stop, 25))
    return line([(x + r * float(np.cos(a)), y + r * float(np.sin(a))) for a in angles], width)


def polygon(*points: tuple[Real, Real]) -> Shape:
    """Return a filled polygon; either orientation is allowed."""

    def distance(px, py):
        best = np.full_like(px, 81.0)
        inside = np.zeros(px.shape, bool)
        for (ax, ay), (bx, by) in zip(points, (points[-1], *points[:-1]), strict=True):
            ex, ey, wx, wy = bx - ax, by - ay, px - ax, py - ay
            t = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
            best = np.minimum(best, (wx - ex * t) ** 2 + (wy - ey * t) ** 2)
            left = ex * wy > ey * wx
            up, down = py >= ay, py < by
            inside ^= (up & down & left) | (~up & ~down & ~left)
        return np.where(inside, -1.0, 1.0) * np.sqrt(best)

    return Shape(distance)


def radial(count: int, outer: Real, inner: Real, start: Real = 90.0) -> Shape:
    """Return a star polygon with `count` points. inner = outer · cos(π / count) makes it a regular polygon."""
    angles = np.deg2rad(start + np.arange(2 * count) * 180.0 / count)
    radii = np.where(np.arange(2 * count) % 2, inner, outer)
    return polygon(*((float(r * np.cos(a)), float(r * np.sin(a))) for r, a in zip(radii, angles, strict=True)))


def around(shape: Shape, count: int, start: Real = 0.0) -> Shape:
    """Return the union of `count` copies rotated about the origin."""
    whole = shape.turn(start)
    for index in range(1, count):
        whole = whole | shape.turn(start + index * 360.0 / count)
    return whole


def distance_field(mask: Bool[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Return the signed distance of every pixel to the edge of the mask, in pixels, negative inside."""
    # The edge lies halfway between a pixel inside and its neighbour outside.
    outside = ndimage.distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, float(sum(mask.shape)))
    return (outside - ndimage.distance_transform_edt(mask) + np.where(mask, 0.5, -0.5)).astype(np.float32)


def mask_shape(mask: Bool[np.ndarray, "h w"], x: Real, y: Real, unit: Real) -> Shape:
    """Return the shape of a mask.

    Distances are computed when they are first needed.

    Args:
      mask: the raster, rows from the top.
      x, y: column and row that become the origin.
      unit: pixels per unit of length.
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
    """Return column, row and radius, in pixels, of a circle around the mask."""
    rows, columns = np.nonzero(mask)
    x, y = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
    return float(x), float(y), float(np.hypot(columns - x, rows - y).max() + 1.0)
