# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Advantage-weighted matching: the loss against its equations in NumPy, and what its gradient is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uso_jax.training.objectives import POLICIES, awm, nft
from uso_jax.training.policy import METHODS, PolicyConfig

ADVANTAGES = np.array([-7.0, 0.3, 2.0], np.float32)


def drawn(distance):
    """Return the arguments of `policy_error` for three images; `distance` is that of the policy to the old one."""
    rng = np.random.default_rng(0)
    old, x0, noise, step = (rng.standard_normal((3, 4, 5)).astype(np.float32) for _ in range(4))
    t = np.array([0.2, 0.5, 0.9], np.float32)
    x_t = (1 - t[:, None, None]) * x0 + t[:, None, None] * noise
    given = dict(velocity=old + distance * step, old=old, x0=x0, x_t=x_t, t=t, advantages=ADVANTAGES)
    return given, noise - x0


@pytest.mark.parametrize("distance", (0.0, 1e-5, 0.1))
def test_loss_is_that_of_the_equations(distance):
    config, (given, target) = PolicyConfig(ratio_clip=1e-2), drawn(distance)
    error = lambda velocity: ((velocity.astype(np.float64) - target) ** 2).mean(axis=(1, 2))
    p, worth = np.exp(error(given["old"]) - error(given["velocity"])), np.clip(ADVANTAGES, -5, 5)
    expected = np.maximum(-worth * p, -worth * np.clip(p, 0.99, 1.01))
    np.testing.assert_allclose(awm.policy_error(config, **jax.tree.map(jnp.asarray, given)), expected, rtol=1e-5)
    assert (np.abs(p - 1) > 0.01).all() == (distance == 0.1)  # clipping matters in the last case


def test_the_gradient_at_first_is_matching_times_the_advantage():
    config, (given, target) = PolicyConfig(), drawn(0.0)
    given = jax.tree.map(jnp.asarray, given)
    velocity = given.pop("velocity")
    found = jax.grad(lambda v: awm.policy_error(config, velocity=v, **given).sum())(velocity)
    matching = 2 * (velocity - target) / velocity[0].size
    np.testing.assert_allclose(found, np.clip(ADVANTAGES, -5, 5)[:, None, None] * matching, rtol=1e-4, atol=1e-6)


def test_it_is_a_method_on_the_roll_outs_of_nft():
    assert set(METHODS) == set(POLICIES) and awm.roll_out is nft.roll_out
