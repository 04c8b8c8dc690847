# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""DiffusionNFT: negative-aware fine-tuning on the forward process (arXiv 2509.16117, section 3).

    (1) x_t = (1 - t) x_0 + t e,   v = e - x_0                  x_0 an image of the old policy, e ~ N(0, I)
    (2) v+  = (1 - beta) v_old + beta v_theta                   implicit positive policy          paper Eq. (5)
    (3) v-  = (1 + beta) v_old - beta v_theta                   implicit negative policy
    (4) r   = 1/2 + 1/2 clip(A, -c, c) / c                      A the advantage; r the probability that it is optimal
    (5) L   = c/beta E [ r d(v+) + (1 - r) d(v-) ] + anchor E |v_theta - v_0|^2
    (6) d(u) = mean |(x_t - t u) - x_0|^2 / sg(mean |(x_t - t u) - x_0|)
    (7) v_old <- h v_old + (1 - h) v_theta                      h = min(max(i - flat, 0) rate, most) after round i

Only images and their advantages are needed: no likelihood, no trajectory, no gradient of the reward, no guidance. v_0
is the model before the stage. (6) weighs every time equally, as the paper's adaptive weighting does (section 3.3), and
the factors of (5) are those of the authors' program. Images without a score do not count.
Shapes: b batch, l target tokens, d token channels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from uso_jax import flow
from uso_jax.models.uso import USO, Batch, Inputs
from uso_jax.params import Params
from uso_jax.training.objectives import noise_levels
from uso_jax.training.policy import ADVANTAGES, COUNTED, PolicyConfig
from uso_jax.training.stage import StageConfig

IMAGES = "rollout_tokens"
"""Name of what a roll-out adds to a batch: the images' tokens [b, l, d]."""


@jax.tree_util.register_dataclass
@dataclass
class Draws:
    """Everything random in one step: drawn is b, k for k noise levels of every image (`PolicyConfig.levels`)."""

    noise: Float[Array, "*drawn l d"]
    t: Float[Array, " *drawn"]


def roll_out(
    params: Params, system: USO, stage: StageConfig, inputs: Inputs, rng: Key[Array, ""]
) -> tuple[Float[Array, "b l d"], dict[str, Array]]:
    """Generate images by any sampler; return their tokens, and the same as what `loss` needs of them."""
    policy, (height, width) = stage.policy, stage.target_size
    settings = dict(num_steps=policy.num_steps, guidance=policy.guidance, shift=policy.shift)
    tokens = system.generate_tokens(params, inputs, rng, height=height, width=width, **settings)
    return tokens, {IMAGES: tokens}


def draw(rng: Key[Array, ""], system: USO, stage: StageConfig) -> Draws:
    """Draw noise and times for a whole batch, as flow matching does, or the same for all its images."""
    policy, (noise, times) = stage.policy, jax.random.split(rng)
    rows, columns = system.token_grid(*stage.target_size)
    mu = system.family.shift_mu(rows * columns) if stage.shift_mu is None else stage.shift_mu
    drawn = (1 if policy.common_noise else stage.batch_size, policy.levels)
    tokens = (rows * columns, system.config.transformer.in_channels)
    noise = jax.random.normal(noise, (*drawn, *tokens))
    t = noise_levels.draw_times(times, stage, mu, math.prod(drawn)).reshape(drawn)
    wanted = (stage.batch_size, policy.levels)
    return Draws(jnp.broadcast_to(noise, (*wanted, *tokens)), jnp.broadcast_to(t, wanted))


def loss(
    params: Params,
    old: Params,
    anchor: Params | None,
    system: USO,
    stage: StageConfig,
    inputs: Inputs,
    batch: Batch,
    draws: Draws,
    error: Callable[..., Float[Array, " b"]] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Return Eq. (5) of a batch of rolled-out images at one noise level, and its figures.

    Args:
      params: all parameters.
      old: all parameters of the old policy.
      anchor: all parameters before the stage; None without that term.
      system: the model.
      stage: a stage with a policy.
      inputs: what encoders make of the conditions; they are not trained.
      batch: what a roll-out adds.
      draws: noise [b, l, d] and times [b].
      error: what replaces `policy_error`, its first term.
    """
    config, x0 = stage.policy, batch[IMAGES]
    x_t = flow.interpolate(x0, draws.noise, draws.t)
    predict = lambda params: system.velocity(params, inputs, x_t, draws.t, config.guidance)
    velocity, before = predict(params), jax.lax.stop_gradient(predict(old))
    errors = (error or policy_error)(config, velocity, before, x0, x_t, draws.t, batch[ADVANTAGES])
    counted = batch[COUNTED]
    figures = {"loss_policy": jnp.mean(errors * counted), "old_distance": jnp.mean(jnp.square(velocity - before))}
    total = figures["loss_policy"]
    if anchor is not None:
        figures["anchor_distance"] = jnp.mean(jnp.square(velocity - jax.lax.stop_gradient(predict(anchor))))
        total = total + config.anchor * figures["anchor_distance"]
    return total, figures


def policy_error(
    config: PolicyConfig,
    velocity: Float[Array, "b l d"],
    old: Float[Array, "b l d"],
    x0: Float[Array, "b l d"],
    x_t: Float[Array, "b l d"],
    t: Float[Array, " b"],
    advantages: Float[Array, " b"],
) -> Float[Array, " b"]:
    """Return the first term of Eq. (5) of each image."""
    r = 0.5 + 0.5 * jnp.clip(advantages, -config.clip, config.clip) / config.clip
    positive = (1 - config.beta) * old + config.beta * velocity
    negative = (1 + config.beta) * old - config.beta * velocity

    def distance(velocity):
        error = flow.predict_x0(x_t, velocity, t) - x0
        scale = jax.lax.stop_gradient(jnp.mean(jnp.abs(error), axis=(1, 2)))
        return jnp.mean(jnp.square(error), axis=(1, 2)) / jnp.maximum(scale, _SMALLEST)

    return config.clip / config.beta * (r * distance(positive) + (1 - r) * distance(negative))


_SMALLEST = 1e-5  # of the scale in Eq. (6)
