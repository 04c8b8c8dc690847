# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Subjects from font symbols, and compositions of a large and a small shape.

Each entry is (name, fill, ink, body, detail). For symbols that are outlines, the lines are the body and the enclosed
area is the detail, so `fill` is the colour of the lines.
"""

from uso_jax.data.drawings.glyphs import glyph, holes, outline
from uso_jax.data.drawings.shapes import NOTHING, Real, Shape, box, circle, ellipse, line, polygon, radial, ring

Entry = tuple[str, str, str, Shape, Shape]


def _solid(name: str, symbol: str, fill: str, grow: Real = 0.0, turn: Real = 0.0) -> Entry:
    """Return the entry of a silhouette; `grow` thickens it to stay visible at 32 pixels."""
    return name, fill, "white", glyph(symbol).size(1.0 - grow).round(grow).turn(turn), NOTHING


def _lined(name: str, symbol: str, fill: str, ink: str, turn: Real = 0.0) -> Entry:
    return name, fill, ink, outline(symbol).turn(turn), holes(symbol).turn(turn)


def _on(name: str, fill: str, ink: str, body: Shape, symbol: str, size: Real, y: Real = 0.0) -> Entry:
    return name, fill, ink, body, glyph(symbol).size(size).move(0.0, y)


# fmt: off
SYMBOLS: tuple[Entry, ...] = (
    _lined("telephone", "☎", "red", "white"),
    _solid("clover", "☘", "green"),
    _solid("pointing hand", "☛", "orange"),
    _lined("skull", "☠", "black", "white"),
    _lined("radiation sign", "☢", "black", "yellow"),
    _solid("biohazard sign", "☣", "orange", 0.04),
    _solid("crescent with a star", "☪", "green", 0.06),
    _lined("peace sign", "☮", "purple", "white"),
    _lined("yin yang", "☯", "black", "white"),
    _lined("ship's wheel", "☸", "brown", "yellow"),
    _lined("smiling face", "☻", "yellow", "black"),
    _lined("chess king", "♚", "brown", "yellow"),
    _solid("chess queen", "♛", "black"),
    _lined("chess rook", "♜", "gray", "white"),
    _lined("chess knight", "♞", "black", "white"),
    _solid("spade", "♠", "black"),
    _solid("pair of notes", "♫", "blue", 0.05),
    _lined("recycling sign", "♻", "green", "white"),
    _lined("die", "⚄", "black", "white"),
    _solid("pair of hammers", "⚒", "gray", 0.03),
    _lined("pair of scales", "⚖", "brown", "yellow"),
    _lined("atom", "⚛", "blue", "white"),
    _lined("warning sign", "⚠", "red", "yellow"),
    _lined("vase", "⚱", "teal", "white"),
    _solid("pair of scissors", "✂", "red", 0.05, turn=65),
    _lined("victory hand", "✌", "brown", "pink"),
    _lined("pencil", "✏", "black", "yellow", turn=-45),
    _solid("check mark", "✔", "green", 0.03),
    _solid("cross mark", "✖", "red"),
    _solid("sparkle", "✦", "yellow", 0.03),
    _solid("snowflake", "❄", "blue", 0.04),
    _lined("mouse", "🐭", "black", "gray"),
    _lined("monkey", "🐵", "brown", "orange"),
    _solid("question mark", "?", "purple", 0.1),
    _solid("ampersand", "&", "teal", 0.06),
    _solid("number 4", "4", "orange", 0.1),
    _solid("sign of infinity", "∞", "pink", 0.08),

    _on("plate with a heart", "white", "red", circle(0, 0, 0.95), "♥", 0.55, -0.04),
    _on("badge with a check mark", "blue", "white", radial(12, 0.98, 0.8), "✔", 0.5),
    _on("road sign with an arrow", "yellow", "black", box(-0.66, -0.66, 0.66, 0.66, 0.1).turn(45), "➡", 0.56),
    _on("shirt with a star", "teal", "yellow", polygon((-0.3, 0.78), (0, 0.62), (0.3, 0.78), (0.95, 0.38),
        (0.72, -0.05), (0.48, 0.1), (0.48, -0.85), (-0.48, -0.85), (-0.48, 0.1), (-0.72, -0.05), (-0.95, 0.38)), "★",
        0.42, -0.1),
    _on("screen with a moon", "black", "yellow", box(-0.85, -0.4, 0.85, 0.72, 0.1) | box(-0.12, -0.6, 0.12, -0.3)
        | box(-0.45, -0.76, 0.45, -0.58, 0.05), "☾", 0.46, 0.16),
    _on("banner with a spade", "purple", "white", polygon((-0.6, 0.8), (0.6, 0.8), (0.6, -0.8), (0, -0.45),
        (-0.6, -0.8)), "♠", 0.5, 0.18),
    ("clock", "white", "black", circle(0, 0, 0.92), ring(0, 0, 0.84, 0.12) | line([(0, 0.55), (0, 0), (0.36, -0.2)],
     0.15)),
    ("gift", "red", "yellow", box(-0.78, -0.8, 0.78, 0.3, 0.04) | ellipse(0, 0, 0.36, 0.2).turn(30).move(0.32, 0.46)
     | ellipse(0, 0, 0.36, 0.2).turn(-30).move(-0.32, 0.46), box(-0.14, -0.8, 0.14, 0.3) | box(-0.8, 0.0, 0.8, 0.18)),
    ("balloon", "pink", "white", ellipse(0, 0.28, 0.54, 0.64) | polygon((0, -0.25), (0.18, -0.52), (-0.18, -0.52))
     | line([(0, -0.45), (0.1, -0.7), (0, -0.95)], 0.1), ellipse(-0.2, 0.5, 0.11, 0.2)),
    ("ladder", "brown", "white", line([(0.42, -0.85), (0.42, 0.85)], 0.2) | line([(-0.42, -0.85), (-0.42, 0.85)], 0.2)
     | box(-0.4, 0.4, 0.4, 0.56) | box(-0.4, -0.08, 0.4, 0.08) | box(-0.4, -0.56, 0.4, -0.4), NOTHING),
    ("traffic light", "black", "yellow", box(-0.4, -0.92, 0.4, 0.92, 0.14), circle(0, 0.56, 0.2) | circle(0, 0, 0.2)
     | circle(0, -0.56, 0.2)),
)
# fmt: on
