# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The table of subjects. Each has a body, inner details, and natural colours.

To add a subject, add an entry that stays inside the unit circle, is recognisable by its silhouette at 32 pixels, and
has details at least 0.12 wide. Subjects in HELDOUT never occur in the train split.
"""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from uso_jax.data.drawings.shapes import NOTHING, Shape, arc, around, box, circle, ellipse, line, polygon, radial, ring
from uso_jax.data.drawings.symbols import SYMBOLS

FIELD_REACH = 1.3  # the field covers [-1.3, 1.3]²; further out, the distance to its border is added
FIELD_SIZE = 161

HELDOUT = (
    *("lightning bolt", "car", "duck", "light bulb", "cactus", "letter E"),
    *("chess knight", "pair of scissors", "telephone", "shirt with a star"),
)

Artwork = Float32[np.ndarray, "size size 4"]


@dataclass(frozen=True, eq=False)
class Subject:
    """An object that can be drawn in any style.

    `phrase` names it in captions. `fill` and `ink` are the colour names of its plain look. `artwork`, if any, is its
    original image: premultiplied RGBA in 0..1 over the square [-1, 1]², row by row from the top.
    """

    name: str
    phrase: str
    fill: str
    ink: str
    body: Shape
    detail: Shape
    heldout: bool = False
    artwork: Artwork | None = None

    @functools.cached_property
    def field(self) -> Float32[np.ndarray, "n 2"]:
        """Signed distances of body and detail on a FIELD_SIZE² grid, row by row from the lower left."""
        axis = np.linspace(-FIELD_REACH, FIELD_REACH, FIELD_SIZE)
        y, x = np.meshgrid(axis, axis, indexing="ij")
        body = self.body.distance(x, y)
        body = _redistance(body, x, y)
        # Details may extend beyond the body; they are visible only on it.
        detail = np.maximum(self.detail.distance(x, y), body + 0.02)
        return np.stack([body.ravel(), _redistance(detail, x, y).ravel()], axis=1).astype(np.float32)


def _redistance(d: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Recompute exact distances to the zero set, since unions and differences yield bounds; outlines need them."""
    points = []
    for axis in (0, 1):
        a, b = np.moveaxis(d, axis, 0)[:-1], np.moveaxis(d, axis, 0)[1:]
        cross = (a < 0) != (b < 0)
        t = a[cross] / (a[cross] - b[cross])
        ends = [(np.moveaxis(p, axis, 0)[:-1][cross], np.moveaxis(p, axis, 0)[1:][cross]) for p in (x, y)]
        points.append(np.stack([p + t * (q - p) for p, q in ends]))
    line_x, line_y = np.concatenate(points, axis=1)
    if not line_x.size:
        return d
    # Distances are smooth, so every second point suffices and is four times faster.
    px, py, line_x, line_y = (v.astype(np.float32) for v in (x[::2, ::2].ravel(), y[::2, ::2].ravel(), line_x, line_y))
    square = np.stack([px, py, np.ones_like(px)], 1) @ np.stack([-2 * line_x, -2 * line_y, line_x**2 + line_y**2])
    coarse = np.sqrt(np.maximum(square.min(1) + px**2 + py**2, 0.0)).reshape(x[::2, ::2].shape)
    coarse *= np.sign(d[::2, ::2])
    far = np.empty_like(d)
    far[::2, ::2] = coarse
    far[1::2, ::2] = (coarse[1:] + coarse[:-1]) / 2
    far[:, 1::2] = (far[:, :-1:2] + far[:, 2::2]) / 2
    # Zero-set points are one cell apart; close to them the shape's own distance is more accurate.
    return np.where(np.abs(d) < 0.04, d, far)


def _subject(name, fill, ink, body, detail=NOTHING, *, phrase=None):
    article = "an" if name[0] in "aeiou" else "a"
    return Subject(name, phrase or f"{article} {name}", fill, ink, body, detail, name in HELDOUT)


def _letter(glyph, fill, body):
    return _subject(f"letter {glyph}", fill, "white", body)


# fmt: off
_ENTRIES = (
    _subject("star", "yellow", "orange", radial(5, 1.0, 0.42), radial(5, 0.42, 0.18)),
    _subject("heart", "red", "pink", (circle(0.45, 0.32, 0.48) | polygon((0, 0.45), (0.86, 0.08), (0, -0.92),
             (-0.3, 0))).mirror(), arc(-0.42, 0.34, 0.24, 80, 190, 0.14)),
    _subject("house", "red", "white", box(-0.68, -0.8, 0.68, 0.2) | polygon((-0.95, 0.1), (0, 0.95), (0.95, 0.1)),
             box(-0.18, -0.9, 0.2, -0.25) | box(-0.2, 0.12, 0.2, 0.42)),
    _subject("fish", "orange", "black", ellipse(-0.18, 0, 0.72, 0.46) | polygon((0.3, 0), (0.95, 0.55), (0.8, 0),
             (0.95, -0.55)), circle(-0.5, 0.12, 0.12) | arc(-0.55, 0, 0.5, -35, 35, 0.12)),
    _subject("cup", "blue", "white", polygon((-0.7, 0.65), (0.45, 0.65), (0.3, -0.7), (-0.55, -0.7))
             | ring(0.48, 0.05, 0.36, 0.17), box(-0.7, 0.2, 0.44, 0.4)),
    _subject("key", "yellow", "brown", (circle(-0.5, 0, 0.45) | box(-0.2, -0.13, 0.95, 0.13) | box(0.7, -0.45, 0.9, 0)
             | box(0.38, -0.38, 0.56, 0)) - circle(-0.52, 0, 0.19)),
    _subject("tree", "green", "brown", polygon((0, 0.98), (0.5, 0.35), (0.28, 0.35), (0.72, -0.45), (-0.72, -0.45),
             (-0.28, 0.35), (-0.5, 0.35)) | box(-0.16, -0.92, 0.16, -0.3), box(-0.16, -0.95, 0.16, -0.45)),
    _subject("cat", "gray", "black", circle(0, -0.12, 0.74) | polygon((0.14, 0.5), (0.72, 0.95), (0.72, 0.05)).mirror()
             | polygon((-0.14, 0.5), (-0.72, 0.95), (-0.72, 0.05)), circle(0.3, 0, 0.13).mirror()
             | polygon((-0.14, -0.26), (0.14, -0.26), (0, -0.46))),
    _subject("moon", "yellow", "orange", circle(-0.05, 0, 0.92) - circle(0.4, 0.18, 0.74), circle(-0.6, 0, 0.13)
             | circle(-0.36, -0.52, 0.11)),
    _subject("arrow", "green", "white", polygon((-0.9, 0.28), (0.1, 0.28), (0.1, 0.72), (0.95, 0), (0.1, -0.72),
             (0.1, -0.28), (-0.9, -0.28))),
    _subject("umbrella", "purple", "black", (circle(0, 0, 0.92) & box(-1, 0.02, 1, 1)) - circle(0, 0, 0.16)
             - circle(0.46, 0, 0.19).mirror() | line([(0, 0.1), (0, -0.7)], 0.14)
             | arc(0.2, -0.68, 0.2, 180, 360, 0.14), line([(0, 0.92), (0.28, 0.1)], 0.1).mirror()),
    _subject("mushroom", "red", "white", (ellipse(0, 0.05, 0.92, 0.8) & box(-1, 0.05, 1, 1))
             | box(-0.26, -0.85, 0.26, 0.1, 0.1), circle(0, 0.52, 0.19) | circle(0.5, 0.32, 0.14).mirror()
             | box(-0.26, -0.9, 0.26, 0.04)),
    _subject("bottle", "green", "white", box(-0.42, -0.95, 0.42, 0.25, 0.16) | polygon((-0.42, 0.12), (0.42, 0.12),
             (0.16, 0.5), (-0.16, 0.5)) | box(-0.16, 0.3, 0.16, 0.95), box(-0.42, -0.6, 0.42, -0.1)),
    _subject("bell", "yellow", "brown", ellipse(0, 0.2, 0.5, 0.62) | polygon((-0.48, 0.2), (0.48, 0.2), (0.82, -0.52),
             (-0.82, -0.52)) | circle(0, -0.66, 0.2) | circle(0, 0.82, 0.14), box(-0.9, -0.42, 0.9, -0.24)),
    _subject("leaf", "green", "white", circle(-0.42, -0.42, 1.05) & circle(0.42, 0.42, 1.05) | line([(0.6, -0.6),
             (0.85, -0.85)], 0.12), line([(-0.5, 0.5), (0.8, -0.8)], 0.12)),
    _subject("drop", "blue", "white", circle(0, -0.38, 0.55) | polygon((-0.53, -0.22), (0, 0.98), (0.53, -0.22)),
             arc(0, -0.38, 0.32, 180, 260, 0.15)),
    _subject("lightning bolt", "yellow", "orange", polygon((0.3, 0.98), (-0.6, -0.15), (-0.05, -0.15), (-0.3, -0.98),
             (0.62, 0.2), (0.08, 0.2))),
    _subject("cloud", "white", "gray", circle(-0.5, -0.15, 0.4) | circle(0.02, 0.15, 0.5) | circle(0.55, -0.12, 0.38)
             | box(-0.6, -0.55, 0.6, -0.1, 0.1)),
    _subject("flower", "pink", "yellow", around(circle(0, 0.58, 0.38), 5) | circle(0, 0, 0.4), circle(0, 0, 0.28)),
    _subject("sun", "orange", "yellow", circle(0, 0, 0.5) | around(polygon((-0.17, 0.58), (0.17, 0.58), (0, 1.0)), 8),
             circle(0, 0, 0.26)),
    _subject("rocket", "white", "red", ellipse(0, 0.1, 0.36, 0.88) | polygon((0.2, -0.05), (0.66, -0.62),
             (0.2, -0.5)).mirror() | polygon((-0.2, -0.05), (-0.66, -0.62), (-0.2, -0.5)) | polygon((-0.2, -0.6),
             (0.2, -0.6), (0, -1.0)), circle(0, 0.25, 0.17) | polygon((-0.3, -0.66), (0.3, -0.66), (0, -1.1))),
    _subject("boat", "brown", "red", polygon((-0.9, -0.3), (0.9, -0.3), (0.55, -0.8), (-0.55, -0.8))
             | polygon((0.08, -0.2), (0.08, 0.95), (0.75, -0.2)) | polygon((-0.08, -0.2), (-0.08, 0.75), (-0.55, -0.2))
             | box(-0.08, -0.4, 0.08, 0.9), polygon((0.08, -0.2), (0.08, 0.95), (0.75, -0.2))),
    _subject("car", "red", "black", box(-0.95, -0.4, 0.95, 0.12, 0.14) | polygon((-0.62, 0), (-0.36, 0.55), (0.3, 0.55),
             (0.62, 0)) | circle(0.5, -0.42, 0.25).mirror(), circle(0.5, -0.42, 0.17).mirror() | polygon((-0.4, 0.12),
             (-0.25, 0.4), (0.2, 0.4), (0.38, 0.12))),
    _subject("apple", "red", "green", circle(0.28, -0.15, 0.6).mirror() | line([(0, 0.3), (0.08, 0.72)], 0.14)
             | ellipse(0, 0, 0.34, 0.15).turn(25).move(0.4, 0.75), ellipse(0, 0, 0.34, 0.15).turn(25).move(0.4, 0.75)
             | line([(0, 0.42), (0.08, 0.72)], 0.14)),
    _subject("cherry", "red", "green", circle(-0.5, -0.5, 0.38) | circle(0.45, -0.55, 0.38) | line([(-0.45, -0.3),
             (0.15, 0.85), (0.4, -0.3)], 0.13), line([(-0.4, -0.1), (0.15, 0.85), (0.36, -0.1)], 0.13)),
    _subject("crown", "yellow", "red", polygon((-0.85, -0.6), (-0.92, 0.5), (-0.42, 0), (0, 0.75), (0.42, 0),
             (0.92, 0.5), (0.85, -0.6)), box(-0.9, -0.48, 0.9, -0.26)),
    _subject("anchor", "blue", "white", (ring(0, 0.7, 0.2, 0.14) | box(-0.1, -0.8, 0.1, 0.55)
             | box(-0.45, 0.2, 0.45, 0.38) | arc(0, -0.1, 0.7, 195, 345, 0.2) | polygon((0.5, -0.15), (0.95, -0.2),
             (0.82, 0.2)).mirror() | polygon((-0.5, -0.15), (-0.95, -0.2), (-0.82, 0.2)))),
    _subject("hammer", "gray", "brown", (box(-0.12, -0.95, 0.12, 0.5, 0.05) | box(-0.6, 0.35, 0.55, 0.85, 0.06)
             | polygon((-0.55, 0.85), (-0.55, 0.5), (-0.92, 0.45))), box(-0.14, -0.98, 0.14, 0.33)),
    _subject("glasses", "black", "teal", ring(0.48, 0, 0.34, 0.2).mirror() | box(-0.18, -0.02, 0.18, 0.14)
             | circle(0.48, 0, 0.3).mirror(), circle(0.48, 0, 0.24).mirror(), phrase="a pair of glasses"),
    _subject("butterfly", "purple", "yellow", (ellipse(0, 0, 0.5, 0.4).turn(35).move(0.5, 0.36)
             | ellipse(0, 0, 0.36, 0.3).turn(-30).move(0.4, -0.45)).mirror() | ellipse(0, -0.05, 0.12, 0.7),
             (circle(0.52, 0.4, 0.18) | circle(0.4, -0.45, 0.13)).mirror()),
    _subject("ghost", "white", "black", (circle(0, 0.3, 0.64) | box(-0.64, -0.7, 0.64, 0.3)
             | circle(0.43, -0.7, 0.21).mirror() | circle(0, -0.7, 0.21)), ellipse(0.25, 0.3, 0.14, 0.2).mirror()),
    _subject("snowman", "white", "orange", circle(0, -0.45, 0.52) | circle(0, 0.32, 0.36) | box(-0.42, 0.56, 0.42, 0.7)
             | box(-0.26, 0.6, 0.26, 0.98), box(-0.42, 0.56, 0.42, 0.7) | box(-0.26, 0.6, 0.26, 1.1)
             | circle(0, -0.35, 0.1) | circle(0, -0.68, 0.1) | line([(0, 0.3), (0.25, 0.24)], 0.12)),
    _subject("duck", "yellow", "orange", ellipse(0.12, -0.32, 0.72, 0.48) | circle(-0.36, 0.42, 0.38)
             | polygon((-0.6, 0.5), (-1.0, 0.3), (-0.6, 0.22)) | polygon((0.5, -0.2), (0.95, 0.2), (0.75, -0.4)),
             polygon((-0.66, 0.55), (-1.05, 0.3), (-0.66, 0.18)) | circle(-0.4, 0.52, 0.1)
             | arc(0.2, -0.2, 0.34, 190, 350, 0.12)),
    _subject("book", "brown", "white", polygon((-0.95, 0.5), (0, 0.34), (0.95, 0.5), (0.95, -0.62), (0, -0.75),
             (-0.95, -0.62)), line([(0, 0.4), (0, -0.8)], 0.14) | line([(0.28, 0.1), (0.7, 0.16)], 0.11).mirror()
             | line([(0.28, -0.22), (0.7, -0.16)], 0.11).mirror()),
    _subject("envelope", "white", "red", box(-0.92, -0.6, 0.92, 0.6, 0.06), line([(-0.9, 0.55), (0, -0.1),
             (0.9, 0.55)], 0.14)),
    _subject("chair", "brown", "orange", box(-0.6, -0.05, -0.38, 0.95) | box(-0.6, -0.2, 0.62, 0.06)
             | box(-0.6, -0.95, -0.4, 0) | box(0.42, -0.95, 0.62, 0)),
    _subject("hat", "black", "red", box(-0.95, -0.6, 0.95, -0.34, 0.1) | box(-0.52, -0.5, 0.52, 0.75, 0.08),
             box(-0.55, -0.34, 0.55, -0.06)),
    _subject("banana", "yellow", "brown", arc(0, 0.55, 0.88, 212, 328, 0.4) | line([(0.7, 0.12), (0.88, 0.5)], 0.2),
             line([(0.83, 0.38), (0.9, 0.6)], 0.3) | circle(-0.86, 0.14, 0.17)),
    _subject("pear", "green", "brown", ellipse(0, -0.42, 0.66, 0.54) | circle(0, 0.24, 0.34)
             | line([(0, 0.5), (0.1, 0.92)], 0.15) | ellipse(0, 0, 0.36, 0.15).turn(20).move(0.46, 0.72),
             line([(0, 0.62), (0.1, 0.95)], 0.18) | ellipse(0, 0, 0.38, 0.17).turn(20).move(0.46, 0.72)),
    _subject("carrot", "orange", "green", polygon((-0.4, 0.36), (0.4, 0.36), (0, -0.98)).round(0.02) | line([(0, 0.3),
             (0, 0.9)], 0.18) | line([(0, 0.3), (0.36, 0.8)], 0.18).mirror(), box(-1, 0.38, 1, 1) | line([(-0.3, 0.08),
             (-0.02, 0.08)], 0.1) | line([(0, -0.3), (0.2, -0.3)], 0.1)),
    _subject("ice cream", "pink", "brown", circle(0, 0.36, 0.56) | polygon((-0.5, 0.15), (0.5, 0.15), (0, -0.98)),
             polygon((-0.5, 0.1), (0.5, 0.1), (0, -1.2)), phrase="an ice cream"),
    _subject("candle", "white", "orange", box(-0.28, -0.92, 0.28, 0.28, 0.04) | ellipse(0, 0.64, 0.2, 0.33)
             | box(-0.06, 0.2, 0.06, 0.5), ellipse(0, 0.66, 0.22, 0.36)),
    _subject("light bulb", "yellow", "gray", circle(0, 0.3, 0.62) | polygon((-0.45, -0.1), (0.45, -0.1), (0.28, -0.5),
             (-0.28, -0.5)) | box(-0.28, -0.92, 0.28, -0.42, 0.08), box(-0.4, -0.56, 0.4, -0.44)
             | box(-0.4, -0.8, 0.4, -0.68)),
    _subject("flag", "red", "white", box(-0.72, -0.95, -0.55, 0.95) | polygon((-0.6, 0.88), (0.85, 0.88), (0.5, 0.45),
             (0.85, 0.02), (-0.6, 0.02)), box(-0.55, 0.34, 0.9, 0.56)),
    _subject("sword", "gray", "brown", polygon((-0.18, -0.4), (0.18, -0.4), (0.18, 0.66), (0, 0.98), (-0.18, 0.66))
             | box(-0.5, -0.52, 0.5, -0.3) | box(-0.13, -0.98, 0.13, -0.4), box(-0.5, -1, 0.5, -0.32)),
    _subject("shield", "blue", "yellow", polygon((-0.78, 0.72), (0, 0.92), (0.78, 0.72), (0.74, -0.1), (0.42, -0.62),
             (0, -0.95), (-0.42, -0.62), (-0.74, -0.1)), box(-0.12, -0.9, 0.12, 0.9) | box(-0.8, 0.12, 0.8, 0.36)),
    _subject("gear", "gray", "black", (circle(0, 0, 0.68) | around(box(-0.17, 0.5, 0.17, 0.95), 8))
             - circle(0, 0, 0.28)),
    _subject("donut", "brown", "pink", circle(0, 0, 0.9) - circle(0, 0, 0.3), ring(0, 0, 0.6, 0.34)),
    _subject("diamond", "teal", "white", polygon((-0.6, 0.65), (0.6, 0.65), (0.95, 0.2), (0, -0.9), (-0.95, 0.2)),
             box(-1, 0.14, 1, 0.27) | line([(-0.3, 0.6), (-0.38, 0.2), (0, -0.85), (0.38, 0.2), (0.3, 0.6)], 0.09)),
    _subject("snail", "brown", "orange", circle(0.15, 0.15, 0.62) | box(-0.9, -0.72, 0.85, -0.42, 0.13)
             | line([(-0.72, -0.5), (-0.78, 0.15)], 0.2) | line([(-0.78, 0.1), (-0.95, 0.42)], 0.1)
             | line([(-0.78, 0.1), (-0.62, 0.42)], 0.1), ring(0.15, 0.15, 0.38, 0.13) | circle(0.15, 0.15, 0.12)),
    _subject("rabbit", "white", "pink", circle(0, -0.38, 0.56) | ellipse(0.28, 0.45, 0.17, 0.52).mirror(),
             ellipse(0.28, 0.5, 0.07, 0.34).mirror() | circle(0.22, -0.28, 0.1).mirror() | circle(0, -0.52, 0.11)),
    _subject("cactus", "green", "yellow", box(-0.2, -0.95, 0.2, 0.95, 0.2) | line([(0.1, -0.2), (0.6, -0.2),
             (0.6, 0.35)], 0.28) | line([(-0.1, 0.05), (-0.6, 0.05), (-0.6, 0.55)], 0.28), line([(0, 0.6),
             (0, 0.4)], 0.1) | line([(0, 0), (0, -0.2)], 0.1) | line([(0, -0.5), (0, -0.7)], 0.1)),
    _subject("airplane", "blue", "white", ellipse(0, 0, 0.17, 0.95) | polygon((0, 0.3), (0.95, -0.22), (0.95, -0.4),
             (0, -0.12)).mirror() | polygon((0, 0.3), (-0.95, -0.22), (-0.95, -0.4), (0, -0.12)) | polygon((0, -0.55),
             (0.42, -0.88), (-0.42, -0.88))),
    _subject("robot", "gray", "red", box(-0.66, -0.8, 0.66, 0.5, 0.12) | box(-0.07, 0.4, 0.07, 0.8)
             | circle(0, 0.82, 0.15) | box(-0.9, -0.3, 0.9, 0.1), circle(0.3, 0.1, 0.16).mirror()
             | box(-0.36, -0.5, 0.36, -0.32)),
    _letter("A", "blue", line([(-0.66, -0.8), (0, 0.82), (0.66, -0.8)], 0.34) | line([(-0.4, -0.28),
             (0.4, -0.28)], 0.28)),
    _letter("S", "red", line([(0.5, 0.6), (0.1, 0.8), (-0.35, 0.7), (-0.5, 0.4), (-0.3, 0.1), (0.3, -0.1), (0.5, -0.4),
             (0.35, -0.7), (-0.1, -0.8), (-0.5, -0.6)], 0.34)),
    _letter("R", "green", line([(-0.45, -0.8), (-0.45, 0.8), (0.15, 0.8), (0.42, 0.6), (0.42, 0.3), (0.15, 0.06),
             (-0.4, 0.06)], 0.32) | line([(0.05, 0.06), (0.5, -0.8)], 0.32)),
    _letter("E", "purple", line([(0.5, 0.8), (-0.42, 0.8), (-0.42, -0.8), (0.5, -0.8)], 0.32) | line([(-0.42, 0),
             (0.35, 0)], 0.3)),
)
# fmt: on

SUBJECTS: dict[str, Subject] = {entry.name: entry for entry in (*_ENTRIES, *(_subject(*entry) for entry in SYMBOLS))}


def subject_names(*, heldout: bool) -> tuple[str, ...]:
    """Return the names of the subjects that are held out of training, or of the others."""
    return tuple(name for name, subject in SUBJECTS.items() if subject.heldout is heldout)
