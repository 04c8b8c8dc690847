# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Training times and their weights, against diffusers' own functions."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

from uso_jax import flow
from uso_jax.training.objectives import noise_levels
from uso_jax.training.stage import StageConfig

STAGE = StageConfig("any", batch_size=400_000)
QUANTILES = np.linspace(0.05, 0.95, 19)


def times(mu: float = 0.0, **values) -> np.ndarray:
    return np.asarray(
        noise_levels.draw_times(jax.random.key(3), dataclasses.replace(STAGE, **values), mu, STAGE.batch_size)
    )


@pytest.mark.parametrize(
    "values",
    [
        dict(timesteps="logit_normal"),
        dict(timesteps="logit_normal", timestep_mean=0.8, timestep_std=0.5),
        dict(timesteps="mode"),
        dict(timesteps="mode", mode_scale=-0.7),
    ],
    ids=str,
)
def test_times_are_distributed_as_in_diffusers(values):
    stage = dataclasses.replace(STAGE, **values)
    expected = compute_density_for_timestep_sampling(
        stage.timesteps, 400_000, stage.timestep_mean, stage.timestep_std, stage.mode_scale,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    found = times(**values)
    assert found.min() >= 0 and found.max() <= 1
    np.testing.assert_allclose(np.quantile(found, QUANTILES), np.quantile(expected.numpy(), QUANTILES), atol=0.006)


def test_times_are_shifted_as_the_schedule_is():
    plain, shifted = times(timesteps="logit_normal"), times(mu=0.9, timesteps="logit_normal")
    np.testing.assert_allclose(shifted, flow.time_shift(plain, 0.9), rtol=1e-5)
    table = flow.sample_times(jax.random.key(3), STAGE.batch_size, 0.9)
    np.testing.assert_array_equal(times(mu=0.9), table)  # uniform times are those of before


def test_weights():
    t = np.linspace(0.0, 1.0, 11, dtype=np.float32)
    weight = lambda **values: np.asarray(noise_levels.weight(dataclasses.replace(STAGE, **values), jnp.asarray(t)))
    np.testing.assert_array_equal(weight(), 1)
    expected = compute_loss_weighting_for_sd3("cosmap", torch.from_numpy(t)).numpy()
    np.testing.assert_allclose(weight(loss_weight="cosmap"), expected, rtol=1e-6)
    snr = np.square((1 - t[1:]) / t[1:])
    found = weight(loss_weight="min_snr", min_snr_gamma=4.0)
    np.testing.assert_allclose(found[1:], np.square(t[1:]) * np.minimum(snr, 4.0), atol=1e-7)
    assert found[0] == 0 and math.isfinite(found.sum())
