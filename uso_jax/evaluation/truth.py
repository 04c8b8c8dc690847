# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The exact judge as a metric: what the drawings' own truth says of a picture, beside what learned metrics say.

Of an item that came from the procedural source, with preserved layout, or without content image, of which only the
style is known:

    truth_content, truth_style    1 where the nearest counterfactual is the true subject, the true style; else 0
    truth_content_margin, ...     how much nearer the truth is than the nearest other, relative to it: the same, graded
    truth_mse                     mean squared error of pixels from 0 to 1
"""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from uso_jax.data import style_patches
from uso_jax.data.procedural import ProceduralSource
from uso_jax.errors import InputError
from uso_jax.evaluation.factors import WISHES, errors, style_sets
from uso_jax.evaluation.gallery import Sample
from uso_jax.evaluation.metric import Metric, Tools
from uso_jax.evaluation.score_log import Result


class Truth:
    """Compare pictures with what their targets would be, had one factor been another."""

    def __init__(self, metric: Metric, tools: Tools):
        self.metric, self.identity = metric, {"truth": "nearest counterfactual, nearest patches"}

    def __call__(self, samples: Sequence[Sample]) -> list[Result]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: Sample) -> Result:
        drawn = sample.item.meta["procedural"]
        source = procedural(*(drawn[name] for name in ("split", "seed", "size", "task", "preserved")))
        triplet = source[drawn["index"]]
        if sample.pixels.shape != triplet.target.shape:
            raise InputError(
                f"{sample.path} is not of the size that mini's truth has, {triplet.target.shape[0]} pixels"
            )
        if triplet.content is None:
            distances = style_patches.distances(sample.pixels, style_sets(source, triplet))
            return _judgement("style", distances)
        contents, styles = source.counterfactuals(triplet)
        found = {"truth_mse": float(np.mean((sample.pixels.astype(float) - triplet.target) ** 2) / 255**2)}
        for name, candidates in (("content", contents), ("style", styles)):
            if name == "style" and not triplet.styles:
                continue
            found |= _judgement(name, errors(sample.pixels, candidates))
        return found


@functools.lru_cache(maxsize=8)
def procedural(split: str, seed: int, size: int, task: str, preserved: float) -> ProceduralSource:
    """Give the source of one of mini's tasks."""
    wishes = WISHES | dict(tasks={task: 1.0}, preserved=preserved)
    return ProceduralSource(split=split, seed=seed, size=size, **wishes)


def _judgement(name: str, distances: Float64[np.ndarray, " m"]) -> dict[str, float]:
    true, *others = distances.tolist()
    nearest = min(others)
    margin = (nearest - true) / max(nearest, true, 1e-12)
    return {f"truth_{name}": float(margin > 0), f"truth_{name}_margin": margin}
