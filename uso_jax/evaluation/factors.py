# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Exact judgement of pictures: the nearest of what the target would be, had only one factor been another.

A source that knows the truth gives, for every triplet, the target with other subjects and the target in other styles. A
picture is right about its content if the nearest of the first is the true target, and right about its style if the
nearest of the second is. No learned network is involved. Where the layout is shifted nobody can know the pose that the
target happens to have, so only preserved layouts can be judged like this.

Shapes: n pictures, m candidates, h w pixels.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, UInt8

from uso_jax.data.record import Triplet
from uso_jax.errors import InputError

Images = UInt8[np.ndarray, "n h w 3"]
WISHES = dict(preserved=1.0, style_words=0.0, same_look=0.0, plain=1.0)
"""Of the source, for triplets to judge: only images tell the style, and a subject alone is shown in its plain look."""


@runtime_checkable
class TruthfulSource(Protocol):
    """A source that knows what its targets would be, had one factor been another."""

    def counterfactuals(self, triplet: Triplet) -> tuple[Images, Images]:
        """Give the target with other subjects and in other styles; the target itself comes first in both."""
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


def errors(image: UInt8[np.ndarray, "h w 3"], candidates: UInt8[np.ndarray, "m h w 3"]) -> Float64[np.ndarray, " m"]:
    """Give a picture's mean squared distance to every candidate, of pixel values from 0 to 255."""
    return np.mean((candidates.astype(np.float64) - image) ** 2, axis=(1, 2, 3))


def _nearest(image: np.ndarray, candidates: np.ndarray) -> int:
    return int(np.argmin(errors(image, candidates)))
