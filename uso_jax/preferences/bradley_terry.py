# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A linear Bradley-Terry model of preferences (Bradley and Terry, Biometrika 39, 1952).

    (1) P(a is better than b) = sigmoid(w . (x_a - x_b))                     x the features of an image
    (2) w = argmin  -sum_i [y_i log P_i + (1 - y_i) log(1 - P_i)] + l/2 |w / s|^2

y is 1 if the first is better, 0 if the second is, and 1/2 if a person cannot say, which is the cross-entropy of
Christiano et al. (arXiv 1706.03741, Eq. 1). s scales every feature's differences to one mean square, and then every
block of features to one in total: a block of a thousand numbers weighs no more at first than one that is a single
number. l is chosen by cross-validation over groups, whose images are alike. The problem is convex.
Shapes: n pairs, d features.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from scipy.special import expit

from uso_jax.common.errors import InputError

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)  # l of Eq. (2), of which one is chosen
FOLDS = 5
HELDOUT = 0.2  # share of the groups that measure the accuracy
LEAST = 20  # decided pairs below which nothing is fitted
LEAST_HELDOUT = 5

Pairs = Float[np.ndarray, "n d"]


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted model, and how well it agrees with pairs that it was not fitted to.

    Attributes:
      weights: w.
      penalty: l.
      fitted: pairs that it was fitted to.
      heldout: which pairs measure the accuracy.
      accuracy: share of them on which it agrees with the person; pairs without a decision do not count.
    """

    weights: Float[np.ndarray, " d"]
    penalty: float
    fitted: int
    heldout: Bool[np.ndarray, " n"]
    accuracy: float


def fit(differences: Pairs, better: Float[np.ndarray, " n"], groups: Sequence[str], blocks: Sequence[int]) -> Fit:
    """Fit the model to pairs; a fifth of the groups, by the digest of their names, measures its accuracy.

    Args:
      differences: features of the first image minus those of the second.
      better: y of every pair.
      groups: name of every pair's group.
      blocks: sizes of the blocks of features, in order.

    Raises:
      InputError: there are too few pairs or groups.
    """
    part = np.array([_share(name) for name in groups])
    decided, heldout = better != 0.5, part < HELDOUT
    if decided.sum() < LEAST or (heldout & decided).sum() < LEAST_HELDOUT or len({*part[~heldout]}) < FOLDS:
        raise InputError(
            f"{decided.sum()} pairs with a decision, {(heldout & decided).sum()} of them held out, are too few to fit a"
            f" scorer: at least {LEAST}, {LEAST_HELDOUT} and {FOLDS} groups are needed; judge more pairs"
        )
    scale = _scale(differences[~heldout], blocks)
    scaled = differences * scale
    fold = ((part - HELDOUT) / (1 - HELDOUT) * FOLDS).astype(int)
    known = lambda rows, penalty: _minimise(scaled[rows], better[rows], penalty)

    def validation(penalty: float) -> float:
        errors = [
            _cross_entropy(known(~heldout & (fold != k), penalty), scaled[rows], better[rows]).sum()
            for k in range(FOLDS)
            if (rows := ~heldout & (fold == k)).any()
        ]
        return sum(errors)

    penalty = min(PENALTIES, key=validation)
    weights = known(~heldout, penalty) * scale
    found = accuracy(differences[heldout] @ weights, better[heldout])
    return Fit(weights, penalty, int((~heldout).sum()), heldout, found)


def accuracy(scores: Float[np.ndarray, " n"], better: Float[np.ndarray, " n"]) -> float:
    """Return on which share of the decided pairs a score prefers the same image; equal scores count half."""
    decided = better != 0.5
    return float(np.mean(np.where(scores == 0, 0.5, (scores > 0) == (better > 0.5))[decided]))


def _scale(differences: Pairs, blocks: Sequence[int]) -> Float[np.ndarray, " d"]:
    """Return s of Eq. (2); what never differs has 0."""
    size = np.sqrt(np.mean(np.square(differences), axis=0))
    return np.where(size > 1e-9, 1 / np.maximum(size, 1e-9), 0.0) / np.sqrt(np.repeat(blocks, blocks))


def _cross_entropy(
    weights: Float[np.ndarray, " d"], x: Pairs, better: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Return the term of each pair in Eq. (2)."""
    margin = x @ weights
    return np.logaddexp(0, margin) - better * margin


def _minimise(x: Pairs, better: Float[np.ndarray, " n"], penalty: float) -> Float[np.ndarray, " d"]:
    """Solve Eq. (2) for scaled features."""

    def cost(weights):
        gradient = x.T @ (expit(x @ weights) - better) + penalty * weights
        return _cross_entropy(weights, x, better).sum() + penalty / 2 * weights @ weights, gradient

    return minimize(cost, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x


def _share(name: str) -> float:
    """Return a number in [0, 1) that follows from a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 2**48
