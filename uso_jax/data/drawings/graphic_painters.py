# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Painters of graphic styles: areas, lines, hatchings, screens, grids and patterns.

A painter maps a canvas with a posed subject and a style to colours; `render` clips them to 0..1.
"""

import numpy as np

from uso_jax.data.drawings import palette
from uso_jax.data.drawings.brush import Colours, across, dots, lines, noise, over, rgb, scatter, wrap
from uso_jax.data.drawings.canvas import Canvas
from uso_jax.data.drawings.look import WHITE, DrawingStyle


def flat(canvas: Canvas, style: DrawingStyle, base=None) -> Colours:
    """Fill the body with one colour and the details with another, over the background or `base`."""
    body, detail = canvas.distances
    painted = over(style.ground if base is None else base, style.fill, canvas.cover(body))
    return over(painted, style.ink, canvas.cover(detail))


def split(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Swap the colours on one side of a line through the image."""
    body, detail = canvas.distances
    side = canvas.cover(across(canvas, style.angle, 1.0, 0.3 * (style.phase - 0.5)))
    mark = np.float32(0.8) * canvas.cover(detail)
    return over(style.ground, style.fill, np.abs(np.maximum(canvas.cover(body) - mark, 0.0) - side))


def cel(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Shade in two hard steps with a dark contour, in front of a horizon."""
    body, detail = canvas.distances
    reach = np.float32(1.5 * style.weight)
    lit, _ = canvas.distances_at(canvas.x - reach, canvas.y + reach)
    low = palette.blend(style.ground, (0.1, 0.1, 0.25), 0.3)
    image = over(style.ground, low, canvas.cover(canvas.y + np.float32(0.25 + 0.5 * style.phase)))
    image = over(image, palette.blend(style.fill, WHITE, 0.35), canvas.cover(body))
    dark = palette.blend(style.fill, (0.05, 0.02, 0.15), 0.45)
    image = over(image, dark, canvas.cover(body) * canvas.cover(-lit))
    image = over(image, (0.05, 0.04, 0.08), canvas.cover(np.abs(body) - np.float32(0.3 * style.weight)))
    return over(image, style.ink, canvas.cover(detail))


def outline(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Draw the edges with a pen of constant width."""
    body, detail = canvas.distances
    edge = np.maximum(canvas.cover(np.abs(body) - style.weight / 2), canvas.cover(np.abs(detail) - 0.4 * style.weight))
    return over(style.ground, style.fill, edge)


def sketch(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Draw each edge twice with a shaky hand and scribble over it, on rough paper."""
    wave = np.float32(0.45 * style.weight)
    bend = wave * np.sin(canvas.y * np.float32(6.0) + np.float32(6.28 * style.phase))
    sway = wave * np.sin(canvas.x * np.float32(5.0) + np.float32(9.0 * style.phase))
    first, detail = canvas.distances_at(canvas.x + bend - wave, canvas.y + sway)
    second, _ = canvas.distances_at(canvas.x - bend + 2 * wave, canvas.y - sway - wave)
    scribble = lines(canvas, across(canvas, style.angle, 0.2) + 5 * bend, 0.35, 0.2) * canvas.cover(first, 3.0)
    pencil = np.maximum(canvas.cover(np.abs(first) - 0.025), np.float32(0.7) * canvas.cover(np.abs(second) - 0.02))
    pencil = np.maximum(pencil, canvas.cover(np.abs(detail) - 0.02))
    paper = rgb(palette.blend(style.ground, WHITE, 0.25)) * (0.86 + 0.14 * noise(canvas.size, 32, 3))[:, None]
    return over(over(paper, style.fill, np.float32(0.4) * scribble), style.fill, pencil)


def ripple(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Repeat the outline outwards."""
    body, detail = canvas.distances
    period = 0.7 * style.period
    rings = lines(canvas, body / np.float32(period), 0.42, period) * (body > 0)
    return over(style.ground, style.fill, np.maximum(rings, canvas.cover(body)) - canvas.cover(detail))


def hatching(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Fill with parallel strokes."""
    return _strokes(canvas, style, _pen(canvas, style, style.angle, 0.5 * style.period, 0.42))


def crosshatch(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Fill with strokes in two directions, fainter on the background."""
    one = _pen(canvas, style, style.angle, 0.55 * style.period, 0.34)
    two = _pen(canvas, style, style.angle + np.pi / 2, 0.55 * style.period, 0.34)
    return _strokes(canvas, style, np.maximum(one, two), ground=0.4)


def _pen(canvas, style, angle, period, share):
    return lines(canvas, across(canvas, angle, period, style.phase), share, period)


def _strokes(canvas, style, strokes, ground=0.0):
    body, detail = canvas.distances
    strokes = strokes * np.maximum(canvas.cover(body), np.float32(ground))
    edges = np.maximum(canvas.cover(detail), canvas.cover(np.abs(body) - np.float32(0.035)))
    return over(style.ground, style.fill, np.maximum(strokes, edges))


def engraving(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Cover the image with wavy lines that are wider in the body."""
    body, detail = canvas.distances
    period = 0.55 * style.period
    phase = canvas.y / np.float32(period) + np.float32(style.phase) + np.float32(0.16) * np.sin(canvas.x * 5)
    share = 0.16 + 0.66 * canvas.cover(body) - 0.6 * canvas.cover(detail)
    return over(style.ground, style.fill, lines(canvas, phase, share, period))


def halftone(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Print with a screen of dots that are larger in the body."""
    body, detail = canvas.distances
    inside = canvas.cover(body) - np.float32(0.85) * canvas.cover(detail)
    spots = dots(canvas, style, 0.55 * style.period, 0.14 + 0.28 * inside)
    # A light tint under the screen keeps the silhouette where dots alone would be too coarse.
    return over(over(style.ground, style.fill, np.float32(0.4) * inside), style.fill, spots)


def polka(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Put large dots on the background."""
    spots = dots(canvas, style, 1.1 * style.period, np.float32(0.24))
    return flat(canvas, style, over(style.ground, palette.blend(style.ground, style.ink, 0.6), spots))


def stipple(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Scatter specks, dense in the body."""
    body, detail = canvas.distances
    density = 0.05 + 0.77 * canvas.cover(body)
    grain = (noise(canvas.size, 32, int(4 * style.phase)) < density).astype(np.float32)
    return over(over(style.ground, style.fill, grain), style.ink, canvas.cover(detail + 0.02))


def pixel(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Draw in large squares with a dark rim."""
    cell = np.float32(0.29 * style.period)
    shift = cell * np.float32(style.phase)
    x, y = ((np.floor((axis + shift) / cell) + 0.5) * cell - shift for axis in (canvas.x, canvas.y))
    body, detail = canvas.distances_at(x, y)
    painted = over(style.ground, style.fill, (body < 0.3 * cell).astype(np.float32))
    edge = (np.abs(body + 0.2 * cell) < 0.5 * cell).astype(np.float32) * np.float32(0.35)
    return over(over(painted, style.ink, edge), style.ink, (detail < 0.0).astype(np.float32))


def mosaic(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Lay tiles of uneven colour with dark joints."""
    cell = np.float32(0.5 * style.period)
    row = np.floor(canvas.y / cell)
    shift = np.float32(0.5) * cell * (row % 2) + cell * np.float32(style.phase)
    column = np.floor((canvas.x + shift) / cell)
    left, low = column * cell - shift, row * cell
    body, detail = canvas.distances_at(left + 0.5 * cell, low + 0.5 * cell)
    shade = 0.85 + 0.3 * scatter(column, row)
    tiles = over(style.ground, style.fill, (body < 0.02).astype(np.float32)) * shade[:, None]
    tiles = over(tiles, style.ink, (detail < 0.0).astype(np.float32))
    gap = np.minimum(canvas.x - left, canvas.y - low) < max(canvas.pixel, 0.05)
    return over(tiles, style.ink, gap.astype(np.float32) * np.float32(0.55))


def cross_stitch(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Stitch crosses in the local colour on darker cloth."""
    cell = 0.7 * style.period
    u, v = (wrap(axis / np.float32(cell) + np.float32(style.phase)) - np.float32(0.5) for axis in (canvas.x, canvas.y))
    threads = canvas.cover((np.minimum(np.abs(u - v), np.abs(u + v)) - np.float32(0.2)) * np.float32(0.7 * cell))
    cloth = palette.blend(style.ground, (0.1, 0.08, 0.1), 0.3)
    body, detail = canvas.distances
    light = 1.0 + 0.15 * (u - v)
    sewn = over(style.ground, style.fill, canvas.cover(body))
    sewn = over(sewn, style.ink, canvas.cover(detail)) * light[:, None]
    under = over(cloth, palette.blend(style.fill, (0.05, 0.03, 0.06), 0.6), canvas.cover(body))
    return under + (sewn - under) * threads[:, None]


def stripes(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Fill with wide stripes."""
    return _filled(canvas, style, _pen(canvas, style, style.angle, style.period, 0.5))


def checker(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Fill with a checkerboard."""
    cell = np.float32(1.5 / style.period)
    column = np.floor(canvas.x * cell + 2 * np.float32(style.phase))
    return _filled(canvas, style, (column + np.floor(canvas.y * cell)) % 2)


def _filled(canvas, style, texture):
    body, detail = canvas.distances
    image = over(over(style.ground, style.fill, canvas.cover(body)), style.ink, texture * canvas.cover(body + 0.04))
    return over(image, style.ground, canvas.cover(detail))


def rays(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Draw rays from the centre of the image behind the body."""
    turns = np.arctan2(canvas.y, canvas.x) * np.float32(10 / (2 * np.pi)) + np.float32(style.phase)
    beams = (wrap(turns) < 0.5).astype(np.float32)
    return flat(canvas, style, over(style.ground, palette.blend(style.ground, style.ink, 0.4), beams))
