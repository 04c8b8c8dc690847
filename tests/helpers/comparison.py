# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Relative errors, and their bounds in the golden and oracle tests."""

import jax
import numpy as np

VELOCITY, DENOISED, ENCODER = 2e-4, 1e-3, 1e-4
# One block has no sinusoids, whose arguments of up to 4000 radians limit the accuracy of a whole model.
BLOCK = 2e-5
NORM = 1e-5


def error(got, want) -> float:
    """Return the largest error divided by the standard deviation of the wanted values."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / want.std())


def relative(got, want) -> float:
    """Return the largest error divided by the largest wanted magnitude."""
    got, want = np.asarray(got), np.asarray(want)
    return float(np.abs(got - want).max() / np.abs(want).max())


def assert_same(got, want):
    """Compare two trees of arrays, bit by bit."""
    got, want = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (got, want))
    assert got.keys() == want.keys()
    assert [jax.tree_util.keystr(path) for path in want if not np.array_equal(got[path], want[path])] == []
