# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of a report: radar chart of columns, scatter plot of models, contact sheets."""

import io
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from uso_jax.evaluation.benchmark import Column
from uso_jax.images.decode import Pixels

COLOURS = ("#3b6fb6", "#d1603d", "#3f9b63", "#8a5bb0", "#b88a1e", "#2f9aa3", "#c04f86", "#6b6b6b")
_STYLE = {"font.size": 9, "svg.fonttype": "path", "axes.spines.top": False, "axes.spines.right": False}
_CELL, _GAP, _LINE = 160, 8, 14


def radar(columns: Sequence[Column], models: Mapping[str, Mapping[str, float]]) -> str | None:
    """Return a radar chart as SVG, or None with fewer than three columns or two models.

    Each axis ranges from the worst model near the centre to the best at the rim.
    """
    axes = [
        column
        for column in columns
        if not column.combine and column.higher_is_better is not None and all(column.name in m for m in models.values())
    ][:10]
    if len(axes) < 3 or len(models) < 2:
        return None
    angles = np.linspace(0, 2 * np.pi, len(axes), endpoint=False)
    values = np.array(
        [[model[axis.name] * (1 if axis.higher_is_better else -1) for axis in axes] for model in models.values()]
    )
    low, high = values.min(axis=0), values.max(axis=0)
    shares = 0.25 + 0.75 * (values - low) / np.where(high > low, high - low, 1)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6, 5), layout="constrained")
        plot = figure.add_subplot(projection="polar")
        for (name, _), share, colour in zip(models.items(), shares, COLOURS * 4, strict=False):
            closed = [np.append(x, x[0]) for x in (angles, share)]
            plot.plot(*closed, color=colour, label=name, linewidth=1.6)
            plot.fill(*closed, color=colour, alpha=0.08)
        digits = lambda axis: f"{axis.name}\n{{:.{axis.digits}f}} to {{:.{axis.digits}f}}"
        signs = [1 if axis.higher_is_better else -1 for axis in axes]
        plot.set_xticks(
            angles, [digits(a).format(x * s, y * s) for a, x, y, s in zip(axes, low, high, signs, strict=True)]
        )
        plot.tick_params(axis="x", pad=22)
        plot.set(yticks=[], ylim=(0, 1.05))
        plot.set_theta_zero_location("N")
        plot.set_theta_direction(-1)
        plot.grid(alpha=0.35)
        plot.spines["polar"].set_visible(False)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return _svg(figure)


def scatter(
    x: Column, y: Column, models: Mapping[str, Mapping[str, float]], known: Mapping[str, Mapping[str, float]]
) -> str:
    """Return a scatter plot of models by two columns as SVG: `models` in colour, published ones (`known`) in grey."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6, 4.4), layout="constrained")
        plot = figure.add_subplot()
        points = [(name, row, "#9a9a9a", "o") for name, row in known.items()]
        points += [(name, row, colour, "D") for (name, row), colour in zip(models.items(), COLOURS * 4, strict=False)]
        for name, row, colour, marker in points:
            if x.name in row and y.name in row:
                plot.scatter(row[x.name], row[y.name], color=colour, marker=marker, s=28, zorder=3)
                plot.annotate(name, (row[x.name], row[y.name]), xytext=(5, 4), textcoords="offset points", fontsize=7.5)
        arrow = {True: " (higher is better)", False: " (lower is better)", None: ""}
        plot.set(xlabel=x.name + arrow[x.higher_is_better], ylabel=y.name + arrow[y.higher_is_better])
        plot.margins(0.18)
        plot.grid(alpha=0.25)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def sheet(rows: Sequence[tuple[str, Sequence[Pixels | None]]], titles: Sequence[str]) -> Image.Image:
    """Return a contact sheet: one row per (text, images) under column titles; a missing image (None) is crossed out."""
    font, small = ImageFont.load_default(13), ImageFont.load_default(11)
    width = _GAP + len(titles) * (_CELL + _GAP)
    height = 24 + len(rows) * (_CELL + 2 * _LINE + _GAP)
    out = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(out)
    for column, title in enumerate(titles):
        x = _GAP + column * (_CELL + _GAP) + _CELL // 2
        pen.text((x, 12), title[:24], fill=(40, 40, 40), font=font, anchor="mm")
    for number, (words, images) in enumerate(rows):
        y = 24 + number * (_CELL + 2 * _LINE + _GAP)
        for column, pixels in enumerate(images):
            x = _GAP + column * (_CELL + _GAP)
            if pixels is None:
                pen.rectangle((x, y, x + _CELL - 1, y + _CELL - 1), outline=(205, 205, 205))
                pen.line((x, y, x + _CELL, y + _CELL), fill=(225, 225, 225))
                continue
            shown = _fitted(pixels)
            out.paste(shown, (x + (_CELL - shown.width) // 2, y + (_CELL - shown.height) // 2))
        for line, text in enumerate(textwrap.wrap(words, max(20, width // 7))[:2]):
            pen.text((_GAP, y + _CELL + 2 + line * _LINE), text, fill=(90, 90, 90), font=small)
    return out


def _fitted(pixels: Pixels) -> Image.Image:
    image = Image.fromarray(pixels)
    scale = _CELL / max(image.size)
    size = tuple(max(1, round(length * scale)) for length in image.size)
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
