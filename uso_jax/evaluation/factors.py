# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Exact judgement of pictures: the nearest of what the target would be, had only one factor been another.

A source that knows the truth gives, for every triplet, the target with other subjects and the target in other styles. A
picture is right about its content if the nearest of the first is the true target, and right about its style if the
nearest of the second is. No learned network is involved. Where the layout is shifted nobody can know the pose that the
target happens to have, so only preserved layouts can be judged like this. Where there is no content image at all, the
style is still known: it is right if the picture's patches are nearest to other drawings in the target's style.

Shapes: n pictures, m candidates, k styles, h w pixels.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, UInt8

from uso_jax.data import style_patches
from uso_jax.data.record import Triplet
from uso_jax.errors import InputError

Images = UInt8[np.ndarray, "n h w 3"]
WISHES = dict(preserved=1.0, style_words=0.0, same_look=0.0, plain=1.0)
"""Of the source, for triplets to judge: only images tell the style, and a subject alone is shown in its plain look."""

NUM_DRAWINGS = 12  # in each style, for its patches


@runtime_checkable
class TruthfulSource(Protocol):
    """A source that knows what its targets would be, had one factor been another."""

    def counterfactuals(self, triplet: Triplet) -> tuple[Images, Images]:
        """Give the target with other subjects and in other styles; the target itself comes first in both."""
        ...

    def style_drawings(self, triplet: Triplet, count: int, rng: np.random.Generator) -> list[Images]:
        """Draw so many other subjects in the target's style, then in other styles."""
        ...


class Counterfactuals:
    """The candidates of a list of triplets, drawn once."""

    def __init__(self, source: TruthfulSource, triplets: Sequence[Triplet]):
        if shifted := [t.key for t in triplets if t.layout != "preserved"]:
            raise InputError(f"{shifted[0]} has a shifted layout, whose pose nothing tells; judge preserved ones only")
        self.targets = np.stack([t.target for t in triplets])
        self._candidates = [source.counterfactuals(t) for t in triplets]

    def score(self, images: Images) -> dict[str, float]:
        """Give the shares of pictures that are right about content and about style, and the mean squared error.

        Chance is one in the number of candidates. The error is of pixel values from 0 to 1.
        """
        pairs = list(zip(images, self._candidates, strict=True))
        return {
            "content_accuracy": float(np.mean([_nearest(image, content) == 0 for image, (content, _) in pairs])),
            "style_accuracy": float(np.mean([_nearest(image, style) == 0 for image, (_, style) in pairs])),
            "mse": float(np.mean(((images.astype(np.float64) - self.targets) / 255) ** 2)),
        }


class Styles:
    """The styles of a list of triplets, for tasks in which nothing tells the pose."""

    def __init__(self, source: TruthfulSource, triplets: Sequence[Triplet]):
        self._drawn = [style_sets(source, triplet) for triplet in triplets]

    def score(self, images: Images) -> dict[str, float]:
        """Give the share of pictures that are right about style. Chance is one in the number of styles."""
        nearest = [np.argmin(style_patches.distances(*pair)) for pair in zip(images, self._drawn, strict=True)]
        return {"style_accuracy": float(np.mean(np.equal(nearest, 0)))}


def style_sets(source: TruthfulSource, triplet: Triplet) -> list[Images]:
    """Draw what the styles of a triplet are told by, the same at every call; the target's own style comes first."""
    return source.style_drawings(triplet, NUM_DRAWINGS, np.random.default_rng(list(triplet.key.encode())))


def errors(image: UInt8[np.ndarray, "h w 3"], candidates: UInt8[np.ndarray, "m h w 3"]) -> Float64[np.ndarray, " m"]:
    """Give a picture's mean squared distance to every candidate, of pixel values from 0 to 255."""
    return np.mean((candidates.astype(np.float64) - image) ** 2, axis=(1, 2, 3))


def _nearest(image: np.ndarray, candidates: np.ndarray) -> int:
    return int(np.argmin(errors(image, candidates)))
