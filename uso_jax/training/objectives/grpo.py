# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Flow-GRPO: the policy gradient of a flow model whose sampling is stochastic (arXiv 2505.05470, section 4).

    (1) m   = x (1 + q dt) + v (1 + q (1 - t)) dt        q = a^2 / (2 (1 - t)),  dt = s - t < 0      paper Eq. (9)
    (2) x_s = m + a sqrt(t / (1 - t)) sqrt(-dt) e        e ~ N(0, I)
    (3) l   = mean log N(x_s; m, a^2 t / (1 - t) (-dt))
    (4) L   = E max(-A p, -A clip(p, 1 - eps, 1 + eps))  p = exp(l_theta - l_old), A the clipped advantage
              + anchor E (m_theta - m_0)^2 / (2 std^2)

Only the steps of a window are stochastic, and only they are trained on; the others are Euler steps (MixGRPO, arXiv
2507.21802). At t = 1, (1) and (2) use the schedule's next time in 1 - t, as the authors' program does. l is the mean
over an image's numbers, so `ratio_clip` does not depend on its size. It serves as a comparison for `nft` on the same
roll-outs, and it needs their trajectories.
Shapes: b batch, k steps of the window, l target tokens, d token channels.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from uso_jax.models.uso import USO, Batch, Inputs
from uso_jax.params import Params
from uso_jax.training.policy import ADVANTAGES, COUNTED, PolicyConfig
from uso_jax.training.stage import StageConfig

BEFORE, AFTER, DENSITY = "rollout_before", "rollout_after", "rollout_density"
"""Names of what a roll-out adds to a batch: the tokens before and after each step of the window, [b, k, l, d], and the
step's log density under the old policy, [b, k]."""

Tokens = Float[Array, "b l d"]


def roll_out(
    params: Params, system: USO, stage: StageConfig, inputs: Inputs, rng: Key[Array, ""]
) -> tuple[Tokens, dict[str, Array]]:
    """Generate images with a stochastic window; return their tokens and what `loss` needs of their trajectories."""
    policy, times = stage.policy, _times(system, stage)
    noise_key, step_key = jax.random.split(rng)
    inputs, style = system.prepare(params, system.guided(params, inputs, policy.guidance), policy.guidance)
    rows, columns = system.token_grid(*stage.target_size)
    shape = (inputs.txt.shape[0], rows * columns, system.config.transformer.in_channels)

    def step(x, number):
        t, s = times[number], times[number + 1]
        velocity = system.velocity(params, inputs, x, jnp.broadcast_to(t, shape[:1]), policy.guidance, style)
        mean, deviation = transition(policy, x, velocity, t, s, times[1])
        drawn = mean + deviation * jax.random.normal(jax.random.fold_in(step_key, number), shape)
        inside = (number >= policy.window[0]) & (number < sum(policy.window))
        after = jnp.where(inside, drawn, x + (s - t) * velocity)
        return after, (x, after, log_density(after, mean, deviation))

    x, (before, after, density) = jax.lax.scan(step, jax.random.normal(noise_key, shape), jnp.arange(policy.num_steps))
    chosen = slice(policy.window[0], sum(policy.window))
    by_image = lambda values: values[chosen].swapaxes(0, 1)
    return x, {BEFORE: by_image(before), AFTER: by_image(after), DENSITY: by_image(density)}


def draw(rng: Key[Array, ""], system: USO, stage: StageConfig) -> dict:
    """Return no draws; everything random is in the roll-out."""
    del rng, system, stage
    return {}


def loss(
    params: Params,
    old: Params,
    anchor: Params | None,
    system: USO,
    stage: StageConfig,
    inputs: Inputs,
    batch: Batch,
    draws: dict,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Return Eq. (4) of a batch of rolled-out images, the mean over the window, and its figures.

    Arguments are those of `nft.loss`; the old policy is in the trajectories.
    """
    del old, draws
    policy, times = stage.policy, _times(system, stage)
    b = batch[ADVANTAGES].shape[0]

    def of_step(totals, number):
        x, after, before = (jnp.take(batch[name], number, axis=1) for name in (BEFORE, AFTER, DENSITY))
        t, s = (times[policy.window[0] + number + i] for i in (0, 1))
        predict = lambda params: system.velocity(params, inputs, x, jnp.broadcast_to(t, (b,)), policy.guidance)
        mean, deviation = transition(policy, x, predict(params), t, s, times[1])
        ratio = jnp.exp(log_density(after, mean, deviation) - before)
        terms = {"loss_policy": jnp.mean(clipped_loss(policy, ratio, batch[ADVANTAGES]) * batch[COUNTED])}
        terms["ratio_distance"] = jnp.mean(jnp.abs(ratio - 1))
        if anchor is not None:
            first, _ = transition(policy, x, jax.lax.stop_gradient(predict(anchor)), t, s, times[1])
            terms["anchor_distance"] = jnp.mean(jnp.square(mean - first)) / (2 * jnp.square(deviation))
        return {name: totals[name] + value / policy.window[1] for name, value in terms.items()}, None

    names = ("loss_policy", "ratio_distance", *(("anchor_distance",) if anchor is not None else ()))
    figures, _ = jax.lax.scan(of_step, dict.fromkeys(names, jnp.zeros(())), jnp.arange(policy.window[1]))
    return figures["loss_policy"] + policy.anchor * figures.get("anchor_distance", 0.0), figures


def transition(
    policy: PolicyConfig, x: Tokens, velocity: Tokens, t: Array, s: Array, second: Array
) -> tuple[Tokens, Float[Array, ""]]:
    """Return mean and standard deviation of a stochastic step from t to s, Eq. (1) and (2); `second` follows t = 1."""
    dt, rest = s - t, 1 - jnp.minimum(t, second)
    q = policy.noise**2 / (2 * rest)
    return x * (1 + q * dt) + velocity * (1 + q * (1 - t)) * dt, policy.noise * jnp.sqrt(t / rest) * jnp.sqrt(-dt)


def log_density(x: Tokens, mean: Tokens, deviation: Float[Array, ""]) -> Float[Array, " b"]:
    """Return each image's log density, Eq. (3), the mean over its numbers."""
    each = -jnp.square((x - mean) / deviation) / 2 - jnp.log(deviation) - math.log(2 * math.pi) / 2
    return jnp.mean(each, axis=(1, 2))


def clipped_loss(policy: PolicyConfig, ratio: Float[Array, " b"], advantages: Float[Array, " b"]) -> Float[Array, " b"]:
    """Return the first term of Eq. (4) of each image."""
    worth = jnp.clip(advantages, -policy.clip, policy.clip)
    return jnp.maximum(-worth * ratio, -worth * jnp.clip(ratio, 1 - policy.ratio_clip, 1 + policy.ratio_clip))


def _times(system: USO, stage: StageConfig) -> Float[Array, " steps_plus_1"]:
    policy = stage.policy
    return jnp.asarray(system.schedule(policy.num_steps, *stage.target_size, policy.shift), jnp.float32)
