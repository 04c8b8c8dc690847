# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Flow-GRPO: transitions and densities against torch's distributions, and the clipped loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uso_jax.common.errors import InputError
from uso_jax.training.objectives import grpo
from uso_jax.training.policy import PolicyConfig
from uso_jax.training.stage import StageConfig

POLICY = PolicyConfig(method="grpo", noise=0.6)
TIMES = (1.0, 0.8, 0.5, 0.0)
RNG = np.random.default_rng(0)
X, V = (RNG.standard_normal((2, 3, 4)).astype(np.float32) for _ in range(2))


def transition(t, s):
    return grpo.transition(POLICY, jnp.asarray(X), jnp.asarray(V), *map(jnp.float32, (t, s, TIMES[1])))


@pytest.mark.parametrize("t, s", ((1.0, 0.8), (0.8, 0.5)))
def test_a_transition_is_the_papers(t, s):
    """Written out with the paper's sigma: drift v + sigma^2 / (2 t) (x + (1 - t) v), noise sigma sqrt(-dt)."""
    torch = pytest.importorskip("torch")
    sigma = POLICY.noise * np.sqrt(t / (1 - (t if t < 1 else TIMES[1])))
    x, v = map(torch.tensor, (X, V))
    expected = x + (v + sigma**2 / (2 * t) * (x + (1 - t) * v)) * (s - t)
    mean, deviation = transition(t, s)
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)
    assert float(deviation) == pytest.approx(sigma * np.sqrt(t - s), rel=1e-6)
    after = np.asarray(mean) + 0.7 * float(deviation)
    normal = torch.distributions.Normal(torch.tensor(np.asarray(mean)), float(deviation))
    density = normal.log_prob(torch.tensor(after)).mean(dim=(1, 2))
    np.testing.assert_allclose(grpo.log_density(jnp.asarray(after), mean, deviation), density, rtol=1e-5)


def test_noise_keeps_the_marginals():
    """From exact data, stochastic steps end in the same distribution as Euler steps: here a normal one."""
    t, s, n = 0.5, 0.48, 200_000
    rng = np.random.default_rng(1)
    spread = 0.5  # of the data
    x0, noise = spread * rng.standard_normal(n), rng.standard_normal(n)
    x = (1 - t) * x0 + t * noise
    variance = lambda t: (1 - t) ** 2 * spread**2 + t**2
    v = (t - (1 - t) * spread**2) / variance(t) * x  # E[e - x_0 | x]
    shaped = lambda values: jnp.asarray(values.reshape(1, n, 1), jnp.float32)
    mean, deviation = grpo.transition(POLICY, shaped(x), shaped(v), *map(jnp.float32, (t, s, 0.8)))
    after = np.asarray(mean).ravel() + float(deviation) * rng.standard_normal(n)
    assert after.var() == pytest.approx(variance(s), rel=0.01)
    euler = x + (s - t) * v
    assert euler.var() == pytest.approx(variance(s), rel=0.01)
    assert np.corrcoef(after, euler)[0, 1] < 0.995  # it is not the same path


def test_ratios_are_clipped_on_the_side_that_gains():
    policy = dataclasses.replace(POLICY, ratio_clip=0.1, clip=2.0)
    ratio, worth = jnp.array([1.5, 0.5, 1.5, 0.5]), jnp.array([1.0, 1.0, -1.0, -5.0])
    np.testing.assert_allclose(grpo.clipped_loss(policy, ratio, worth), [-1.1, -0.5, 1.5, 1.8], rtol=1e-6)
    slope = jax.grad(lambda r: grpo.clipped_loss(policy, r, worth).sum())(ratio)
    np.testing.assert_allclose(slope, [0, -1, 1, 0])


def test_the_gradient_raises_the_density_of_good_steps():
    mean, deviation = transition(0.8, 0.5)
    after = mean + 0.5 * deviation
    before = grpo.log_density(after, mean, deviation)

    def loss(v):
        moved, _ = grpo.transition(POLICY, jnp.asarray(X), v, *map(jnp.float32, (0.8, 0.5, TIMES[1])))
        ratio = jnp.exp(grpo.log_density(after, moved, deviation) - before)
        return grpo.clipped_loss(POLICY, ratio, jnp.array([1.0, -1.0])).sum()

    v = jnp.asarray(V) - 0.1 * jax.grad(loss)(jnp.asarray(V))
    moved, _ = grpo.transition(POLICY, jnp.asarray(X), v, *map(jnp.float32, (0.8, 0.5, TIMES[1])))
    change = grpo.log_density(after, moved, deviation) - before
    assert change[0] > 0 > change[1]


@pytest.mark.parametrize("window", ((0, 10), (9, 1), (-1, 2), (0, 0)))
def test_the_window_lies_before_the_last_step(window):
    with pytest.raises(InputError, match="window"):
        StageConfig("s", policy=PolicyConfig(method="grpo", window=window))
