# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The times that training draws, and the weight of a time in the flow-matching loss.

    uniform        one of 1000 evenly spaced times, as UNO's trainer draws them
    logit_normal   sigmoid(m + s z), z ~ N(0, 1)                              SD3 (arXiv 2403.03206) section 3.1
    mode           1 - u - s (cos(pi u / 2)^2 - 1 + u), u ~ U(0, 1)           SD3 Eq. (20)

Every drawn time is then shifted towards noise (`flow.time_shift`) by the stage's mu.

    none           w(t) = 1                                                   USO Eq. (5)
    cosmap         w(t) = 2 / (pi (1 - 2 t + 2 t^2))                          SD3 Eq. (21), density of CosMap
    min_snr        w(t) = t^2 min(((1 - t) / t)^2, gamma)                     arXiv 2303.09556

Min-SNR weights the error of the predicted image by min(SNR, gamma); that error is t times the velocity's.
Shapes: b batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from uso_jax import flow
from uso_jax.training.stage import StageConfig


def draw_times(rng: Key[Array, ""], stage: StageConfig, mu: float, count: int) -> Float[Array, " count"]:
    """Draw times as a stage says; `mu` is the exponent of the time shift."""
    if stage.timesteps == "uniform":
        return flow.sample_times(rng, count, mu)
    if stage.timesteps == "logit_normal":
        z = jax.random.normal(rng, (count,))
        t = jax.nn.sigmoid(stage.timestep_mean + stage.timestep_std * z)
    else:
        u = jax.random.uniform(rng, (count,))
        t = 1 - u - stage.mode_scale * (jnp.square(jnp.cos(0.5 * jnp.pi * u)) - 1 + u)
    return flow.time_shift(t, mu)


def weight(stage: StageConfig, t: Float[Array, " b"]) -> Float[Array, " b"]:
    """Return the weight of each example's squared velocity error."""
    if stage.loss_weight == "cosmap":
        return 2 / (jnp.pi * (1 - 2 * t + 2 * jnp.square(t)))
    if stage.loss_weight == "min_snr":
        return jnp.minimum(jnp.square(1 - t), stage.min_snr_gamma * jnp.square(t))
    return jnp.ones_like(t)
