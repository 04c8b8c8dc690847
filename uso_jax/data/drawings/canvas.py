# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Pose of a subject in the image, and the signed distances that painters use.

Canvas coordinates run from -1 to 1 with y up. Shapes: n points (height · width, row by row from the top).
"""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from uso_jax.data.drawings.subjects import FIELD_REACH, FIELD_SIZE, Artwork, Subject

Points = Float32[np.ndarray, " n"]
# Captions mention a shift (canvas units) or a rotation (radians) above these values.
SHIFTED, TURNED = 0.06, 0.12
SCALE, TURN = (0.62, 0.9), 0.35  # ranges of the poses that sources sample


@dataclass(frozen=True)
class Pose:
    """Scale (at 1 the subject's unit circle touches the canvas edge), angle in radians, and shift in canvas units."""

    scale: float = 0.8
    angle: float = 0.0
    x: float = 0.0
    y: float = 0.0

    @classmethod
    def draw(cls, rng: np.random.Generator, *, scale: tuple[float, float] = SCALE, turn: float = TURN) -> "Pose":
        """Sample a pose that keeps the subject on the canvas."""
        size, angle, x, y = rng.random(4).tolist()
        size = scale[0] + size * (scale[1] - scale[0])
        room = max(0.0, 0.95 - size)
        return cls(size, (2.0 * angle - 1.0) * turn, (2.0 * x - 1.0) * room, (2.0 * y - 1.0) * room)

    @property
    def words(self) -> str:
        """Caption of the pose, such as "small at the top left, turned right"."""
        size = "small " if self.scale < 0.7 else "large " if self.scale > 0.82 else ""
        row = "top" if self.y > SHIFTED else "bottom" if self.y < -SHIFTED else ""
        column = "right" if self.x > SHIFTED else "left" if self.x < -SHIFTED else ""
        place = f"at the {row} {column}" if row and column else f"at the {row or column}"
        turn = ", turned left" if self.angle > TURNED else ", turned right" if self.angle < -TURNED else ""
        return size + (place if row or column else "in the middle") + turn


@functools.lru_cache(maxsize=16)
def grid(size: int) -> tuple[Points, Points]:
    """Return the x and y coordinates of the pixel centres of a size x size canvas."""
    axis = ((np.arange(size) + 0.5) * (2.0 / size) - 1.0).astype(np.float32)
    x, y = np.tile(axis, size), np.repeat(-axis, size)
    x.flags.writeable = y.flags.writeable = False  # shared by every render of this size
    return x, y


class Canvas:
    """The pixels of an image together with a posed subject."""

    def __init__(self, subject: Subject, pose: Pose, size: int):
        self.subject, self.pose, self.size = subject, pose, size
        self.x, self.y = grid(size)
        self.pixel = 2.0 / size

    @functools.cached_property
    def distances(self) -> tuple[Points, Points]:
        """Signed distances to body and detail at every pixel, in canvas units."""
        return self.distances_at(self.x, self.y)

    def distances_at(self, x: Points, y: Points) -> tuple[Points, Points]:
        """Return signed distances to body and detail at any points; styles shift, quantise or bend the points."""
        pose = self.pose
        cells = (FIELD_SIZE - 1) / (2.0 * FIELD_REACH)
        c, s = np.cos(pose.angle) * cells / pose.scale, np.sin(pose.angle) * cells / pose.scale
        middle = np.float32((FIELD_SIZE - 1) / 2)
        dx, dy = x - np.float32(pose.x), y - np.float32(pose.y)
        u = np.float32(c) * dx + np.float32(s) * dy + middle
        v = np.float32(c) * dy - np.float32(s) * dx + middle
        limit = np.float32(FIELD_SIZE - 1.001)
        uc, vc = u.clip(0.0, limit), v.clip(0.0, limit)
        left, low = uc.astype(np.int32), vc.astype(np.int32)
        fu, fv = (uc - left)[:, None], (vc - low)[:, None]
        corner = low * FIELD_SIZE + left
        field = self.subject.field
        a, b = field.take(corner, 0), field.take(corner + 1, 0)
        d, e = field.take(corner + FIELD_SIZE, 0), field.take(corner + (FIELD_SIZE + 1), 0)
        a += (b - a) * fu
        d += (e - d) * fu
        a += (d - a) * fv
        beyond = np.abs(u - uc) + np.abs(v - vc)
        a += (beyond / np.float32(cells))[:, None]
        a *= np.float32(pose.scale)
        return a[:, 0], a[:, 1]

    @functools.cached_property
    def artwork(self) -> Float32[np.ndarray, "n 4"]:
        """Premultiplied RGBA of the subject's artwork at every pixel."""
        pose = self.pose
        # The coarsest mipmap level that is at least as fine as the pixels, and at least 8 pixels wide.
        side = len(self.subject.artwork)
        most = max(0, side.bit_length() - 3)
        image = _level(self.subject, min(max(0, int(np.log2(self.pixel / pose.scale * side / 2.0))), most))
        side = len(image) - 2
        c, s = np.float32(np.cos(pose.angle) / pose.scale), np.float32(np.sin(pose.angle) / pose.scale)
        dx, dy = self.x - np.float32(pose.x), self.y - np.float32(pose.y)
        u = ((c * dx + s * dy) * np.float32(side / 2) + np.float32((side + 1) / 2)).clip(0.0, side + 0.99)
        v = ((s * dx - c * dy) * np.float32(side / 2) + np.float32((side + 1) / 2)).clip(0.0, side + 0.99)
        left, top = u.astype(np.int32), v.astype(np.int32)
        fu, fv = (u - np.floor(u))[:, None], (v - np.floor(v))[:, None]
        upper = image[top, left] * (1 - fu) + image[top, left + 1] * fu
        lower = image[top + 1, left] * (1 - fu) + image[top + 1, left + 1] * fu
        return upper * (1 - fv) + lower * fv

    def cover(self, distance: Points, soft: float = 1.0) -> Points:
        """Return the coverage of each pixel, 0..1, from signed distances; `soft` is the edge width in pixels."""
        return (np.float32(0.5) - distance * np.float32(1.0 / (soft * self.pixel))).clip(0.0, 1.0)


@functools.lru_cache(maxsize=1024)
def _level(subject: Subject, number: int) -> Artwork:
    """Return mipmap level `number` of the subject's artwork, with a transparent border of one pixel."""
    level = subject.artwork
    for _ in range(number):
        half = len(level) // 2
        level = level[: 2 * half, : 2 * half].reshape(half, 2, half, 2, 4).mean((1, 3))
    return np.pad(level, ((1, 1), (1, 1), (0, 0)))
