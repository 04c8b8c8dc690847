# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Exact judgement of pictures of drawn subjects: the target, had only one factor been another.

The procedural source knows subject, pose and style of every target, so the same picture can be drawn with every other
subject, and in other styles. A picture is right about its content if the nearest of the first is the true one, and
right about its style if the nearest of the second is. No learned network is involved. Where the layout is shifted
nobody can know the pose that the target happens to have, so only preserved layouts can be judged like this.

Shapes: n pictures, h w pixels.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, UInt8

from uso_jax.data.procedural import SUBJECTS, Style, render
from uso_jax.data.record import Triplet
from uso_jax.data.styles import PLAIN, STYLE_NAMES
from uso_jax.errors import InputError

NUM_STYLES = 24  # candidates, the true one among them

Images = UInt8[np.ndarray, "n h w 3"]


class Counterfactuals:
    """The candidates of a list of triplets, drawn once."""

    def __init__(self, triplets: Sequence[Triplet]):
        if shifted := [t.key for t in triplets if t.layout != "preserved"]:
            raise InputError(f"{shifted[0]} has a shifted layout, whose pose nothing tells; judge preserved ones only")
        self.triplets = triplets
        self.targets = np.stack([t.target for t in triplets])
        self._subjects = list(SUBJECTS)
        self._content = [np.stack([_draw(t, subject=name) for name in self._subjects]) for t in triplets]
        self._style = [np.stack([_draw(t, style=style) for style in _styles(t)]) for t in triplets]

    def score(self, images: Images) -> dict[str, float]:
        """Give the shares of pictures that are right about content and about style, and the mean squared error.

        Chance is 1 in the number of subjects, and 1 in NUM_STYLES. The error is of pixel values from 0 to 1.
        """
        errors = (images.astype(np.float64) - self.targets) / 255
        content = [
            self._subjects[_nearest(image, candidates)] == t.meta["subject"]
            for image, candidates, t in zip(images, self._content, self.triplets, strict=True)
        ]
        style = [_nearest(image, candidates) == 0 for image, candidates in zip(images, self._style, strict=True)]
        return {
            "content_accuracy": float(np.mean(content)),
            "style_accuracy": float(np.mean(style)),
            "mse": float(np.mean(errors**2)),
        }


def _draw(triplet: Triplet, *, subject: str | None = None, style: Style | None = None) -> np.ndarray:
    meta = triplet.meta
    return render(SUBJECTS[subject or meta["subject"]], meta["pose"], style or meta["style"], triplet.target.shape[0])


def _styles(triplet: Triplet) -> list[Style]:
    """Give the true style first, then others: of another drawing style, of other colours, of both."""
    true: Style = triplet.meta["style"]
    rng = np.random.default_rng(list(triplet.key.encode()))
    names = [name for name in STYLE_NAMES if name != true.name]
    third = (NUM_STYLES - 1) // 3
    styles = [true]
    while len(styles) < NUM_STYLES:
        name = names[rng.integers(len(names))]
        kind = min((len(styles) - 1) // third, 2)
        if kind == 0:
            styles.append(dataclasses.replace(true, name=name))
            continue
        other = Style.draw(
            rng, (true.name if kind == 1 and true.name != PLAIN else name,), heldout=bool(rng.integers(2))
        )
        if (other.fill_name, other.ground_name) != (true.fill_name, true.ground_name):
            styles.append(other)
    return styles


def _nearest(image: np.ndarray, candidates: np.ndarray) -> int:
    distances: Float64[np.ndarray, " n"] = np.mean((candidates.astype(np.float64) - image) ** 2, axis=(1, 2, 3))
    return int(np.argmin(distances))
