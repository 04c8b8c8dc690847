# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Painters of light and material styles (lamps, paper, water, facets, relief, glitches) and of the plain look.

A painter maps a canvas with a posed subject and a style to colours; `render` clips them to 0..1.
"""

import numpy as np

from uso_jax.data.drawings import palette
from uso_jax.data.drawings.brush import NIGHT, Colours, across, clouds, lines, over, rgb, scatter, wrap
from uso_jax.data.drawings.canvas import Canvas
from uso_jax.data.drawings.graphic_painters import flat
from uso_jax.data.drawings.look import WHITE, DrawingStyle


def plain(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Draw the plain look: the artwork's colours, or softly lit natural ones, on a quiet background."""
    body, detail = canvas.distances
    ground = rgb(style.ground) * (1.0 - 0.12 * (canvas.x**2 + canvas.y**2))[:, None]
    ground *= (1.0 - 0.16 * canvas.cover(body, 6.0))[:, None]
    if canvas.subject.artwork is not None:
        own = canvas.artwork
        return ground * (1.0 - own[:, 3:]) + own[:, :3]
    light = 1.0 + 0.16 * ((canvas.y - canvas.pose.y) - 0.6 * (canvas.x - canvas.pose.x)) / canvas.pose.scale
    light -= 0.2 * (1.0 + body * np.float32(8.0)).clip(0.0, 1.0)
    own = over(style.fill, style.ink, canvas.cover(detail)) * light[:, None]
    return ground + (own - ground) * canvas.cover(body)[:, None]


def neon(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Draw the edges as glowing tubes on a dark background."""
    body, detail = canvas.distances
    edge = np.minimum(np.abs(body), np.abs(detail) + 0.03)
    halo = np.exp(-edge / np.float32(1.3 * style.weight))
    colour = palette.blend(style.fill, WHITE, 0.15)
    tube = canvas.cover(edge - 0.28 * style.weight) * np.float32(0.85)
    return over(over(palette.blend(style.ground, NIGHT, 0.78), colour, halo), WHITE, tube)


def spotlight(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Light a disc behind the body on a dark background."""
    away = np.hypot(canvas.x - canvas.pose.x, canvas.y - canvas.pose.y) - np.float32(1.9 * style.period)
    return flat(canvas, style, over(palette.blend(style.ground, NIGHT, 0.72), style.ground, canvas.cover(away)))


def glow(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Draw a dark body in front of a light, as in an eclipse."""
    body, detail = canvas.distances
    halo = np.exp(-body.clip(0.0, None) / np.float32(0.9 * style.period))
    sky = over(palette.blend(style.ground, NIGHT, 0.35), style.fill, halo)
    sky = over(sky, WHITE, np.float32(0.9) * np.exp(-body.clip(0.0, None) / np.float32(0.5 * style.weight)))
    sky = over(sky, palette.blend(style.fill, NIGHT, 0.85), canvas.cover(body))
    return over(sky, style.fill, canvas.cover(detail))


def shadow(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Cast a hard shadow to the lower right."""
    reach = np.float32(1.1 * style.weight)
    cast = np.minimum(*(canvas.distances_at(canvas.x - k * reach, canvas.y + k * reach)[0] for k in (0.8, 1.5)))
    # A shadow would be invisible on a dark background, where a pale echo replaces it.
    dark = palette.luma(style.ground) < 0.35
    shade = palette.blend(style.ground, WHITE if dark else (0.05, 0.04, 0.1), 0.45 if dark else 0.75)
    return flat(canvas, style, over(style.ground, shade, canvas.cover(cast)))


def sticker(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Draw a white rim around the body with a soft shadow."""
    body, _ = canvas.distances
    rim = np.float32(1.25 * style.weight)
    shade = palette.blend(style.ground, (0.0, 0.0, 0.05), 0.55)
    base = over(style.ground, shade, canvas.cover(body - rim - 0.04, 3.0))
    return flat(canvas, style, over(base, WHITE, canvas.cover(body - rim)))


def paper_cut(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Stack layers of paper, each cut wider than the next, over the body."""
    body, detail = canvas.distances
    step = np.float32(1.3 * style.weight)
    image = rgb(style.ground)
    for layer in (3, 2, 1, 0):
        edge = body - layer * step
        above = image if image.ndim == 2 else np.broadcast_to(image, (len(body), 3))
        shade = np.float32(0.55) * np.exp(edge.clip(None, 0.0) / np.float32(0.6 * step))
        own = over(palette.blend(style.fill, style.ground, layer / 4), NIGHT, shade)
        image = above + (own - above) * canvas.cover(edge)[:, None]
    return over(image, style.ink, canvas.cover(detail))


def watercolor(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Paint a wash that is darker along its edges."""
    bend = np.float32(0.07) * np.sin(canvas.y * 7.0 + np.float32(6.28 * style.phase))
    body, detail = canvas.distances_at(canvas.x + bend, canvas.y + bend[::-1])
    stain = 0.35 * clouds(canvas.size, 5, 11 + int(4 * style.phase))
    wash = canvas.cover(body, 4.0) * (0.55 + stain + 0.4 * np.exp(body.clip(-1.0, 0.0) * np.float32(9.0)))
    paper = rgb(palette.blend(style.ground, WHITE, 0.35)) * (0.94 + 0.3 * stain)[:, None]
    return over(over(paper, style.fill, wash.clip(0.0, 1.0)), style.ink, np.float32(0.5) * canvas.cover(detail, 3.0))


def ink_wash(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Brush wet ink on pale paper: ragged and bleeding edges, thinner towards the top."""
    lumps = clouds(canvas.size, 9, 21 + int(4 * style.phase)) - np.float32(0.5)
    body, detail = canvas.distances
    ragged = body + np.float32(0.22) * lumps
    ink = palette.blend(style.fill, (0.04, 0.03, 0.06), 0.55)
    paper = palette.blend(style.ground, WHITE, 0.5)
    bleed = np.exp(-ragged.clip(0.0, None) / np.float32(1.6 * style.weight)) * np.float32(0.55)
    thin = (0.72 - 0.4 * (canvas.y - canvas.pose.y) / canvas.pose.scale + 0.5 * lumps).clip(0.2, 1.0)
    image = over(over(paper, ink, bleed), ink, canvas.cover(ragged, 2.0) * thin)
    return over(image, paper, np.float32(0.85) * canvas.cover(detail))


def low_poly(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Divide body and background into triangles of constant brightness."""
    period = 1.1 * style.period
    u = across(canvas, style.angle, period, style.phase)
    v = across(canvas, style.angle + 2 * np.pi / 3, period, style.phase)
    upper = np.floor(u + v) - np.floor(u) - np.floor(v)  # the half of the rhombus
    shade = scatter(np.floor(u) + upper * 31, np.floor(v), style.phase) - np.float32(0.5)
    body, detail = canvas.distances
    inside = canvas.cover(body)
    image = over(over(style.ground, style.fill, inside), style.ink, canvas.cover(detail))
    return image * (1.0 + (0.5 + 0.45 * inside) * shade)[:, None] + (0.2 * shade * (0.4 + inside))[:, None]


def stained_glass(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Draw leaded panes of glass (Voronoi cells) in shades of the two colours."""
    cell = np.float32(1.2 * style.period)
    u, v = canvas.x / cell + np.float32(style.phase), canvas.y / cell
    column, row = np.floor(u), np.floor(v)
    near = np.full((3, u.size), 9.0, np.float32)  # distances to the nearest two seeds, shade of the nearest
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            a, b = column + i, row + j
            key = scatter(a, b)
            away = np.hypot(a + 0.2 + 0.6 * key - u, b + 0.2 + 0.6 * wrap(key * 7) - v)
            closer = away < near[0]
            near[1] = np.where(closer, near[0], np.minimum(near[1], away))
            near[2] = np.where(closer, wrap(key * 13), near[2])
            near[0] = np.minimum(near[0], away)
    body, detail = canvas.distances
    inside = canvas.cover(body)
    glass = over(over(style.ground, style.fill, inside), style.ink, canvas.cover(detail))
    glass = glass * (0.75 + 0.5 * near[2])[:, None] + np.float32(0.1) * near[2][:, None]
    joint = canvas.cover((near[1] - near[0]) * cell * np.float32(0.5) - np.float32(0.02))
    lead = np.maximum(joint * (0.5 + 0.5 * inside), canvas.cover(np.abs(body) - np.float32(0.35 * style.weight)))
    return over(glass, (0.06, 0.05, 0.07), np.float32(0.9) * lead)


def emboss(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Emboss the body on a sheet, lit from the upper left."""
    step = np.float32(0.5 * style.weight)
    body, detail = canvas.distances
    slope, dent = _slopes(canvas, step)
    relief = np.float32(0.35) * slope * np.exp(-((body / np.float32(style.weight)) ** 2))
    relief -= np.float32(0.3) * dent * np.exp(-((detail / np.float32(0.5 * style.weight)) ** 2)) * canvas.cover(body)
    base = palette.blend(style.ground, style.fill, 0.3)
    raised = canvas.cover(body) * np.float32(0.55) - canvas.cover(detail) * np.float32(0.3)
    return over(base, style.fill, raised) + relief[:, None]


def _slopes(canvas, step):
    """Return the slopes of the distances to body and detail towards the upper left, about -1..1."""
    lit = canvas.distances_at(canvas.x - step, canvas.y + step)
    dim = canvas.distances_at(canvas.x + step, canvas.y - step)
    return tuple((near - far) / step * np.float32(0.5) for near, far in zip(lit, dim, strict=True))


def gradient(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Draw vertical colour gradients in body and background."""
    body, detail = canvas.distances
    t = (0.5 + 0.5 * canvas.y)[:, None]
    own = over(style.fill, style.ink, (0.5 - 0.55 * (canvas.y - canvas.pose.y) / canvas.pose.scale).clip(0.0, 0.6))
    ground = rgb(style.ground) * (0.6 + 0.4 * t) + 0.12 * (1.0 - t) * rgb(style.fill)
    ground = ground + (own - ground) * canvas.cover(body)[:, None]
    return over(ground, style.ground, canvas.cover(detail))


def clay(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Model the body as a soft pillow with a highlight and a soft shadow."""
    body, detail = canvas.distances
    slope, _ = _slopes(canvas, np.float32(style.weight))
    depth = (-body / np.float32(2.2 * style.weight)).clip(0.0, 1.0)
    light = slope * (1.0 - depth)
    fall, _ = canvas.distances_at(canvas.x - 0.08, canvas.y + 0.16)
    image = over(palette.blend(style.ground, WHITE, 0.1), NIGHT, np.float32(0.5) * canvas.cover(fall, 7.0))
    own = over(style.fill, style.ink, np.float32(0.8) * canvas.cover(detail, 2.0)) * (0.95 + 0.45 * light)[:, None]
    gloss = np.exp(-(((slope - 0.9) / 0.35) ** 2) - ((depth - 0.45) / 0.28) ** 2)
    own = over(own, WHITE, np.float32(0.9) * gloss.astype(np.float32))
    return image + (own - image) * canvas.cover(body)[:, None]


def glitch(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Shift horizontal bands sideways, each with a ghost image."""
    row = np.floor((canvas.y + 1.0) * np.float32(1.33 / style.period) + np.float32(style.phase))
    slip = np.float32(style.weight) * np.sin(row * np.float32(2.4))
    body, detail = canvas.distances_at(canvas.x + slip, canvas.y)
    ghost, _ = canvas.distances_at(canvas.x + slip + np.float32(0.9 * style.weight), canvas.y)
    image = over(over(style.ground, style.ink, canvas.cover(ghost)), style.fill, canvas.cover(body))
    return over(image, style.ground, canvas.cover(detail))


def misprint(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Print two transparent inks, the fill and its complement, out of register."""
    reach = np.float32(0.8 * style.weight)
    c, s = reach * np.float32(np.cos(style.angle)), reach * np.float32(np.sin(style.angle))
    one, detail = canvas.distances_at(canvas.x - c, canvas.y - s)
    two, _ = canvas.distances_at(canvas.x + c, canvas.y + s)
    other = tuple(0.15 + 0.85 * (1.0 - v) for v in style.fill)
    first, second = canvas.cover(one), canvas.cover(two)
    paper = over(style.ground, WHITE, np.float32(0.35) + np.zeros_like(first))
    image = over(over(paper, style.fill, first), other, second * (1.0 - first))
    mixed = tuple(0.6 * p * q for p, q in zip(style.fill, other, strict=True))
    return over(over(image, mixed, first * second), other, canvas.cover(detail))


def scanlines(canvas: Canvas, style: DrawingStyle) -> Colours:
    """Show the image on a CRT: swaying, blurred, with dark rows and dim corners."""
    period = 0.5 * style.period
    sway = np.float32(0.5 * style.weight) * np.sin(canvas.y * np.float32(4.0) + np.float32(6.28 * style.phase))
    body, detail = canvas.distances_at(canvas.x + sway, canvas.y)
    image = over(over(style.ground, style.fill, canvas.cover(body, 2.5)), style.ink, canvas.cover(detail, 2.0))
    rows = lines(canvas, across(canvas, np.pi / 2, period, style.phase), 0.5, period)
    dim = (1.1 - 0.22 * (canvas.x**2 + canvas.y**2)) * (1.0 - 0.62 * rows)
    return image * dim[:, None]
