# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The drawing styles: one entry each, a function that paints a posed subject with a palette and a texture.

Add a style by adding a function to FAMILIES. A painter sees a Canvas and a Style, and returns colours [n, 3] in 0..1.
Textures live on the canvas, not on the subject, as a screen or a hatching does. `period` is the size of one texture
element in canvas units (the canvas is 2 wide), at least 6 pixels at 32: less would be gray there.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from uso_jax.data import palette
from uso_jax.data.canvas import Canvas, Points, Pose
from uso_jax.data.palette import RGB
from uso_jax.data.subjects import Subject

Colours = Float32[np.ndarray, "n 3"]
PLAIN = "plain"
WHITE: RGB = (0.98, 0.98, 0.96)


@dataclass(frozen=True)
class Style:
    """A family with its palette and its continuous texture parameters."""

    family: str
    fill: RGB
    ground: RGB
    ink: RGB
    fill_name: str
    ground_name: str
    period: float = 0.4
    angle: float = 0.0
    weight: float = 0.12

    @property
    def words(self) -> str:
        """How a caption describes the style."""
        return f"{self.family} style, {self.fill_name} on {self.ground_name}"

    @classmethod
    def draw(cls, rng: np.random.Generator, families: tuple[str, ...], *, heldout: bool) -> "Style":
        """Draw a style of one of the families from the held-out or from the other combinations."""
        family = families[rng.integers(len(families))]
        choices = combinations(family, heldout)
        fill_name, ground_name = choices[rng.integers(len(choices))]
        fill, ground = palette.vary(rng, palette.COLOURS[fill_name]), palette.vary(rng, palette.COLOURS[ground_name])
        period, angle, weight = rng.random(3).tolist()
        return cls(
            family,
            fill,
            ground,
            palette.ink_for(fill, ground),
            fill_name,
            ground_name,
            period=0.36 + 0.14 * period,
            angle=0.5 + 0.6 * angle,
            weight=0.11 + 0.06 * weight,
        )

    @classmethod
    def plain(cls, rng: np.random.Generator, subject: Subject) -> "Style":
        """Draw the subject's own look: its natural colours before a ground that contrasts with them."""
        base = palette.COLOURS[subject.fill]
        names = tuple(n for n in palette.NAMES if palette.contrast(base, palette.COLOURS[n]) > 0.42)
        name = names[rng.integers(len(names))]
        ground = palette.blend(palette.vary(rng, palette.COLOURS[name]), WHITE, 0.25)
        fill, ink = palette.vary(rng, base), palette.vary(rng, palette.COLOURS[subject.ink])
        return cls(PLAIN, fill, ground, ink, subject.fill, name)


@functools.cache
def combinations(family: str, heldout: bool) -> tuple[tuple[str, str], ...]:
    """List the (fill, ground) pairs of a family that are held out of training, about a quarter, or the others.

    Every family and every pair is seen in training; what is held out is their combination.
    """
    index = list(FAMILIES).index(family)
    return tuple(pair for number, pair in enumerate(palette.pairs()) if ((number + 3 * index) % 4 == 0) is heldout)


def render(subject: Subject, pose: Pose, style: Style, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Draw the subject in the pose and the style: the same arguments always give the same picture."""
    painted = FAMILIES[style.family](Canvas(subject, pose, size), style)
    return (painted.clip(0.0, 1.0) * np.float32(255.0) + np.float32(0.5)).astype(np.uint8).reshape(size, size, 3)


def _rgb(colour: RGB) -> Float32[np.ndarray, "3"]:
    return np.array(colour, np.float32)


def _over(base, colour: RGB, cover: Points) -> Colours:
    """Paint `colour` over the base (a colour or colours) where `cover` is 1."""
    base = base if isinstance(base, np.ndarray) else _rgb(base)
    return base + (_rgb(colour) - base) * cover[:, None]


def _flat(canvas: Canvas, style: Style, base=None) -> Colours:
    body, detail = canvas.distances
    painted = _over(style.ground if base is None else base, style.fill, canvas.cover(body))
    return _over(painted, style.ink, canvas.cover(detail))


def _across(canvas: Canvas, angle: float, period: float) -> Points:
    """Phase (in periods) along the direction that crosses lines at `angle`."""
    c, s = np.float32(np.cos(angle) / period), np.float32(np.sin(angle) / period)
    return canvas.x * c + canvas.y * s


def _lines(canvas: Canvas, phase: Points, share, period: float) -> Points:
    """Cover of stripes that fill `share` of each period (which may vary from point to point)."""
    off = np.abs(phase - np.floor(phase) - np.float32(0.5))
    return canvas.cover((off - share * np.float32(0.5)) * np.float32(period))


def _dots(canvas: Canvas, angle: float, period: float, radius) -> Points:
    """Cover of a screen of discs; `radius` in periods, which may vary from point to point."""
    u, v = _across(canvas, angle, period), _across(canvas, angle + np.pi / 2, period)
    off = np.hypot(u - np.floor(u) - np.float32(0.5), v - np.floor(v) - np.float32(0.5))
    return canvas.cover((off - radius) * np.float32(period))


def _plain(canvas: Canvas, style: Style) -> Colours:
    body, detail = canvas.distances
    ground = _rgb(style.ground) * (1.0 - 0.12 * (canvas.x**2 + canvas.y**2))[:, None]
    ground *= (1.0 - 0.16 * canvas.cover(body, 6.0))[:, None]
    light = 1.0 + 0.16 * ((canvas.y - canvas.pose.y) - 0.6 * (canvas.x - canvas.pose.x)) / canvas.pose.scale
    light -= 0.2 * (1.0 + body * np.float32(8.0)).clip(0.0, 1.0)
    own = _over(style.fill, style.ink, canvas.cover(detail)) * light[:, None]
    return ground + (own - ground) * canvas.cover(body)[:, None]


def _outline(canvas: Canvas, style: Style) -> Colours:
    body, detail = canvas.distances
    edge = np.maximum(canvas.cover(np.abs(body) - style.weight / 2), canvas.cover(np.abs(detail) - 0.4 * style.weight))
    return _over(style.ground, style.fill, edge)


def _stripes(canvas: Canvas, style: Style) -> Colours:
    body, _ = canvas.distances
    stripe = _lines(canvas, _across(canvas, style.angle, style.period), np.float32(0.5), style.period)
    inside = canvas.cover(body)
    return _over(_over(style.ground, style.fill, inside), style.ink, stripe * canvas.cover(body + 0.05))


def _hatching(canvas: Canvas, style: Style) -> Colours:
    body, detail = canvas.distances
    period = 0.62 * style.period
    one = _lines(canvas, _across(canvas, style.angle, period), np.float32(0.4), period)
    two = _lines(canvas, _across(canvas, style.angle + np.pi / 2, period), np.float32(0.4), period)
    inside = canvas.cover(body)
    strokes = np.maximum(one, two * canvas.cover(canvas.y - canvas.pose.y, 4.0)) * inside
    strokes = np.maximum(strokes, canvas.cover(detail))
    return _over(style.ground, style.fill, np.maximum(strokes, canvas.cover(np.abs(body) - 0.035)))


def _halftone(canvas: Canvas, style: Style) -> Colours:
    body, _ = canvas.distances
    inside = canvas.cover(body)
    dots = _dots(canvas, style.angle, 0.55 * style.period, 0.14 + 0.28 * inside)
    # A light tint under the screen keeps the silhouette where the dots alone would be too coarse for it.
    return _over(_over(style.ground, style.fill, np.float32(0.4) * inside), style.fill, dots)


def _pixel(canvas: Canvas, style: Style) -> Colours:
    cell = np.float32(0.37 * style.period)
    x, y = (np.floor(canvas.x / cell) + 0.5) * cell, (np.floor(canvas.y / cell) + 0.5) * cell
    body, detail = canvas.distances_at(x, y)
    painted = _over(style.ground, style.fill, (body < 0.3 * cell).astype(np.float32))
    edge = (np.abs(body + 0.2 * cell) < 0.5 * cell).astype(np.float32) * np.float32(0.35)
    return _over(_over(painted, style.ink, edge), style.ink, (detail < 0.0).astype(np.float32))


def _gradient(canvas: Canvas, style: Style) -> Colours:
    body, detail = canvas.distances
    t = (0.5 + 0.5 * canvas.y)[:, None]
    own = _over(style.fill, style.ink, (0.5 - 0.55 * (canvas.y - canvas.pose.y) / canvas.pose.scale).clip(0.0, 0.6))
    ground = _rgb(style.ground) * (0.6 + 0.4 * t) + 0.12 * (1.0 - t) * _rgb(style.fill)
    ground = ground + (own - ground) * canvas.cover(body)[:, None]
    return _over(ground, style.ground, canvas.cover(detail))


def _neon(canvas: Canvas, style: Style) -> Colours:
    body, detail = canvas.distances
    edge = np.minimum(np.abs(body), np.abs(detail) + 0.03)
    glow = np.exp(-edge / np.float32(1.3 * style.weight))
    night = palette.blend(style.ground, (0.03, 0.02, 0.08), 0.78)
    colour = palette.blend(style.fill, WHITE, 0.15)
    return _over(_over(night, colour, glow), WHITE, canvas.cover(edge - 0.28 * style.weight) * np.float32(0.85))


@functools.lru_cache(maxsize=16)
def _noise(size: int, cells: int, seed: int) -> Points:
    """Make fixed white noise per cell, enlarged to the canvas."""
    values = np.random.default_rng(seed).random((cells, cells), np.float32)
    index = np.arange(size) * cells // size
    return values[np.ix_(index, index)].ravel()


def _stipple(canvas: Canvas, style: Style) -> Colours:
    body, detail = canvas.distances
    density = 0.05 + 0.77 * canvas.cover(body)
    grain = (_noise(canvas.size, 32, 7) < density).astype(np.float32)
    return _over(_over(style.ground, style.fill, grain), style.ink, canvas.cover(detail + 0.02))


def _checker(canvas: Canvas, style: Style) -> Colours:
    body, _ = canvas.distances
    period = 1.3 * style.period
    u, v = np.floor(2.0 / period * canvas.x), np.floor(2.0 / period * canvas.y)
    odd = (u + v) % 2
    return _over(_over(style.ground, style.fill, canvas.cover(body)), style.ink, odd * canvas.cover(body + 0.02))


def _shadow(canvas: Canvas, style: Style) -> Colours:
    reach = np.float32(1.1 * style.weight)
    cast = np.minimum(*(canvas.distances_at(canvas.x - k * reach, canvas.y + k * reach)[0] for k in (0.8, 1.5)))
    # On a dark ground a shadow would not show: there it is a pale echo.
    dark = palette.luma(style.ground) < 0.35
    shade = palette.blend(style.ground, WHITE if dark else (0.05, 0.04, 0.1), 0.45 if dark else 0.75)
    return _flat(canvas, style, _over(style.ground, shade, canvas.cover(cast)))


def _sticker(canvas: Canvas, style: Style) -> Colours:
    body, _ = canvas.distances
    rim = np.float32(1.25 * style.weight)
    shade = palette.blend(style.ground, (0.0, 0.0, 0.05), 0.55)
    base = _over(style.ground, shade, canvas.cover(body - rim - 0.04, 3.0))
    return _flat(canvas, style, _over(base, WHITE, canvas.cover(body - rim)))


def _ripple(canvas: Canvas, style: Style) -> Colours:
    body, _ = canvas.distances
    period = 0.8 * style.period
    rings = _lines(canvas, body / np.float32(period), np.float32(0.42), period)
    return _over(_over(style.ground, style.fill, rings * (body > 0)), style.fill, canvas.cover(body))


def _engraving(canvas: Canvas, style: Style) -> Colours:
    body, detail = canvas.distances
    period = 0.6 * style.period
    phase = canvas.y / np.float32(period) + np.float32(0.16) * np.sin(canvas.x * np.float32(5.0))
    share = 0.16 + 0.66 * canvas.cover(body) - 0.6 * canvas.cover(detail)
    return _over(style.ground, style.fill, _lines(canvas, phase, share, period))


def _glitch(canvas: Canvas, style: Style) -> Colours:
    row = np.floor((canvas.y + 1.0) * np.float32(3.2 / (2.4 * style.period)))
    slip = np.float32(style.weight) * np.sin(row * np.float32(2.4))
    body, _ = canvas.distances_at(canvas.x + slip, canvas.y)
    ghost, _ = canvas.distances_at(canvas.x + slip + np.float32(0.9 * style.weight), canvas.y)
    return _over(_over(style.ground, style.ink, canvas.cover(ghost)), style.fill, canvas.cover(body))


def _polka(canvas: Canvas, style: Style) -> Colours:
    spots = _dots(canvas, style.angle, 1.15 * style.period, np.float32(0.24))
    return _flat(canvas, style, _over(style.ground, palette.blend(style.ground, style.ink, 0.6), spots))


def _split(canvas: Canvas, style: Style) -> Colours:
    body, _ = canvas.distances
    side = canvas.cover(_across(canvas, style.angle, 1.0))
    return _over(style.ground, style.fill, np.abs(canvas.cover(body) - side))


def _rays(canvas: Canvas, style: Style) -> Colours:
    turns = np.arctan2(canvas.y, canvas.x) * np.float32(10 / (2 * np.pi)) + np.float32(style.angle)
    beams = (turns - np.floor(turns) < 0.5).astype(np.float32)
    return _flat(canvas, style, _over(style.ground, palette.blend(style.ground, style.ink, 0.35), beams))


def _emboss(canvas: Canvas, style: Style) -> Colours:
    step = np.float32(0.5 * style.weight)
    lit, _ = canvas.distances_at(canvas.x + step, canvas.y - step)
    dim, _ = canvas.distances_at(canvas.x - step, canvas.y + step)
    body, _ = canvas.distances
    near = np.exp(-((body / np.float32(style.weight)) ** 2))
    relief = (np.float32(0.35) / step) * (lit - dim) * near
    base = palette.blend(style.ground, style.fill, 0.3)
    return _over(base, style.fill, canvas.cover(body) * np.float32(0.55)) + relief[:, None]


def _watercolor(canvas: Canvas, style: Style) -> Colours:
    bend = np.float32(0.07) * np.sin(canvas.y * 7.0 + 3.0 * style.angle)
    body, _ = canvas.distances_at(canvas.x + bend, canvas.y + bend[::-1])
    paper = palette.blend(style.ground, WHITE, 0.2)
    wash = canvas.cover(body, 4.0) * (0.66 + 0.34 * np.exp(body.clip(-1.0, 0.0) * np.float32(9.0)))
    return _over(paper, style.fill, wash)


def _mosaic(canvas: Canvas, style: Style) -> Colours:
    cell = np.float32(0.55 * style.period)
    row = np.floor(canvas.y / cell)
    shift = np.float32(0.5) * cell * (row % 2)
    column = np.floor((canvas.x + shift) / cell)
    left, low = column * cell - shift, row * cell
    body, detail = canvas.distances_at(left + 0.5 * cell, low + 0.5 * cell)
    shade = 1.0 + 0.12 * np.sin(column * 12.9 + row * 78.2)
    tiles = _over(style.ground, style.fill, (body < 0.02).astype(np.float32)) * shade[:, None]
    tiles = _over(tiles, style.ink, (detail < 0.0).astype(np.float32))
    gap = np.minimum(canvas.x - left, canvas.y - low) < max(canvas.pixel, 0.05)
    return _over(tiles, style.ink, gap.astype(np.float32) * np.float32(0.55))


def _spotlight(canvas: Canvas, style: Style) -> Colours:
    away = np.hypot(canvas.x - canvas.pose.x, canvas.y - canvas.pose.y) - np.float32(0.95)
    dark = palette.blend(style.ground, (0.03, 0.02, 0.06), 0.72)
    return _flat(canvas, style, _over(dark, style.ground, canvas.cover(away)))


FAMILIES: dict[str, Callable[[Canvas, Style], Colours]] = {
    PLAIN: _plain,
    "flat": _flat,
    "outline": _outline,
    "stripes": _stripes,
    "hatching": _hatching,
    "halftone": _halftone,
    "pixel": _pixel,
    "gradient": _gradient,
    "neon": _neon,
    "stipple": _stipple,
    "checker": _checker,
    "shadow": _shadow,
    "sticker": _sticker,
    "ripple": _ripple,
    "engraving": _engraving,
    "glitch": _glitch,
    "polka": _polka,
    "split": _split,
    "rays": _rays,
    "emboss": _emboss,
    "watercolor": _watercolor,
    "mosaic": _mosaic,
    "spotlight": _spotlight,
}
STYLE_FAMILIES = tuple(name for name in FAMILIES if name != PLAIN)
