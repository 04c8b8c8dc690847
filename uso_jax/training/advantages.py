# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Advantages: how much better an image scores than the others of its example.

    A_i = (s_i - mean of the group) / standard deviation

An image without a score, NaN, leaves its group: it has no advantage and changes nobody else's.
Shapes: p examples, g images of an example, a group.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from uso_jax.training.policy import PolicyConfig

Scores = Float[np.ndarray, "p g"]
_SMALLEST = 1e-4  # added to the standard deviation: a group of equal images has no advantages


def advantages(config: PolicyConfig, scores: Mapping[str, Scores]) -> tuple[Scores, Bool[np.ndarray, "p g"]]:
    """Return the advantage of each image, 0 without one, and which images have all scores.

    Args:
      config: weights of the scores and how they are combined.
      scores: of every image of a round, by name.
    """
    chosen = {name: np.asarray(scores[name], np.float64) for name in config.scores}
    valid = np.all([np.isfinite(values) for values in chosen.values()], axis=0)
    if config.combine == "parts":
        total = sum(abs(weight) for weight in config.scores.values())
        parts = [
            weight / total * _normalise(chosen[name], valid, config.spread) for name, weight in config.scores.items()
        ]
        found = np.sum(parts, axis=0)
    elif config.combine == "sum":
        found = _normalise(sum(w * chosen[name] for name, w in config.scores.items()), valid, config.spread)
    else:
        powers = [np.maximum(chosen[name], 0.0) ** weight for name, weight in config.scores.items()]
        found = _normalise(np.prod(powers, axis=0), valid, config.spread)
    return np.where(valid, found, 0.0), valid


def _normalise(values: Scores, valid: Bool[np.ndarray, "p g"], spread: str) -> Scores:
    """Subtract each group's mean and divide by the standard deviation of the group or of the whole round."""
    values = np.where(valid, values, 0.0)
    count = np.maximum(valid.sum(axis=1, keepdims=True), 1)
    mean = values.sum(axis=1, keepdims=True) / count
    if spread == "group":
        deviation = np.sqrt((valid * (values - mean) ** 2).sum(axis=1, keepdims=True) / count)
    else:
        known = values[valid]
        deviation = known.std() if known.size else 0.0
    return (values - mean) / (deviation + _SMALLEST)
