# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Style reward learning, the third idea of USO's paper (arXiv 2508.18966, section 3.4 and Algorithm 1).

    (1) L     = L_pre + lambda L_SRL            lambda = 0 in the first S steps of a stage, then 1       paper Eq. (7)
    (2) x_T   ~ N(0, I),  x_(i-1) = x_i + (s_(i-1) - s_i) v(x_i)     i = T ... t+1, without gradient     `roll_out`
    (3) x0^   = x_t - s_t v_theta(x_t)                                              with gradient        `predict`
    (4) r     = sum_k w_k r_k(decode(x0^), references)                                                   `rewards`
    (5) L_SRL = mean phi(r) + anchor mean |v_theta - v_S|^2     over samples that have the references    `loss`

s_i is the time at step i of a schedule of T steps, counted from its end; t is drawn uniformly. With K gradient steps,
the K - 1 steps of (2) before (3) carry a gradient too (DRaFT-K, arXiv 2309.17400). v_S is the model as it was after S
steps: unlike the base without adapters, it knows the style tokens.

Memory: L_pre's backward pass is over before (2) begins, (2) keeps nothing, and (3)-(5) hold the activations of one
pass through the transformer, decoder and reward networks. Text, style and content are encoded once for both losses.
Shapes: b batch, l target tokens, d token channels.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from uso_jax import flow
from uso_jax.models import tiled_decoding
from uso_jax.models.layers import scan
from uso_jax.models.uso import USO, Batch, Inputs
from uso_jax.params import Params
from uso_jax.training import rewards
from uso_jax.training.objectives import flow_matching
from uso_jax.training.stage import StageConfig

SHARE = "reward_share"
"""Name of the array that `weigh` adds to a batch."""

Tally = dict[str, Float[Array, "2"]]
"""Sum and count of a figure over samples, so that micro-batches can be added up."""


@jax.tree_util.register_dataclass
@dataclass
class Draws:
    """Everything random in one step; the whole batch stops at the same t, so no sample waits for another."""

    noise: Float[Array, "*micro b l d"]
    t: Int[Array, "*micro"]


def draw(rng: Key[Array, ""], system: USO, stage: StageConfig) -> Draws:
    """Draw the roll-out's noise and the step at which it stops."""
    noise, t = jax.random.split(rng)
    rows, columns = system.token_grid(*stage.target_size)
    return Draws(
        noise=jax.random.normal(noise, (stage.batch_size, rows * columns, system.config.transformer.in_channels)),
        t=jax.random.randint(t, (), stage.reward.first, stage.reward.last + 1),
    )


def weigh(system: USO, stage: StageConfig, batch: Batch, draws: flow_matching.Draws) -> Batch:
    """Add each sample's share in the mean of (5): equal for samples that have a reference, else 0.

    Shares are those of the whole batch, so the means of its micro-batches add up to the mean of the batch.
    """
    found = rewards.valid(system, stage.reward.weights, flow_matching.drop_conditions(system, batch, draws))
    counts = jnp.any(jnp.stack(list(found.values())), axis=0)
    return {**batch, SHARE: counts * (counts.shape[0] / jnp.maximum(jnp.sum(counts), 1))}


def times(system: USO, stage: StageConfig) -> Float[Array, " T_plus_1"]:
    """Return the times of the roll-out's schedule, from noise to image."""
    return jnp.asarray(system.schedule(stage.reward.num_steps, *stage.target_size, stage.reward.shift), jnp.float32)


def roll_out(params: Params, system: USO, stage: StageConfig, inputs: Inputs, draws: Draws) -> Float[Array, "b l d"]:
    """Follow Eq. (2) from the draws' noise to where gradients begin; the number of steps may be traced."""
    config, schedule = stage.reward, times(system, stage)
    inputs, style = system.prepare(params, system.guided(params, inputs, config.guidance), config.guidance)

    def step(number, x):
        t, s = (jnp.full(x.shape[:1], schedule[number + i]) for i in (0, 1))
        velocity = system.velocity(params, inputs, x, t, config.guidance, style)
        return scan.constrain_batch(flow.euler_step(x, velocity, t, s))

    num_steps = config.num_steps - draws.t - (config.gradient_steps - 1)
    return jax.lax.stop_gradient(jax.lax.fori_loop(0, num_steps, step, draws.noise))


def predict(
    params: Params,
    system: USO,
    stage: StageConfig,
    inputs: Inputs,
    x_t: Float[Array, "b l d"],
    t: Int[Array, ""],
    anchor: Params | None = None,
) -> tuple[Float[Array, "b l d"], Float[Array, ""]]:
    """Return the tokens of Eq. (3) and the mean squared velocity difference to `anchor` at `x_t`, 0 without one."""
    config, schedule = stage.reward, times(system, stage)
    before = schedule[config.num_steps - t - jnp.arange(config.gradient_steps)[::-1]]
    after = jnp.append(before[1:], 0.0)
    inputs = system.guided(params, inputs, config.guidance)
    prepared, style = system.prepare(params, inputs, config.guidance)

    def step(x, pair):
        t, s = (jnp.broadcast_to(time, x.shape[:1]) for time in pair)
        velocity = system.velocity(params, prepared, x, t, config.guidance, style)
        return flow.euler_step(x, velocity, t, s), velocity

    if config.gradient_steps > 1:
        step = jax.checkpoint(step, prevent_cse=False)
    x0, velocities = jax.lax.scan(step, x_t, (before, after))
    if anchor is None:
        return x0, jnp.zeros(())
    # At the first of the steps, whose x_t does not depend on the parameters yet.
    then = system.velocity(anchor, inputs, x_t, jnp.broadcast_to(before[0], x_t.shape[:1]), config.guidance)
    return x0, jnp.mean(jnp.square(velocities[0] - jax.lax.stop_gradient(then)))


def score(
    params: Params, system: USO, stage: StageConfig, tokens: Float[Array, "b l d"], described: dict[str, Any]
) -> dict[str, Float[Array, " b"]]:
    """Decode tokens and return every described reward by name, one block of the batch after another."""
    config = stage.reward

    def block(tokens, described):
        latent = flow.unpack(tokens, *system.token_grid(*stage.target_size), system.config.patch)
        autoencoder = system.module(params, "autoencoder")
        decode = lambda z: autoencoder.decode(z, remat=config.remat_decoder)
        # The backward pass keeps the latents of each tile and decodes them again.
        side, cell = config.tile // autoencoder.config.downscale, autoencoder.config.cell
        images = (
            tiled_decoding.decode_tiled(jax.checkpoint(decode), latent, side, cell) if config.tile else decode(latent)
        )
        return rewards.score(system, params, images, described)

    if config.blocks == 1:
        return block(tokens, described)
    # Strided blocks: each keeps every device's share of the batch on that device.
    cut = lambda x: x.reshape(-1, config.blocks, *x.shape[1:]).swapaxes(0, 1)
    join = lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
    parts = jax.tree.map(cut, (tokens, described))
    return jax.tree.map(join, jax.lax.map(jax.checkpoint(lambda part: block(*part), prevent_cse=False), parts))


def loss(
    params: Params,
    system: USO,
    stage: StageConfig,
    inputs: Inputs,
    batch: Batch,
    described: dict[str, Any],
    x_t: Float[Array, "b l d"],
    t: Int[Array, ""],
    anchor: Params | None = None,
) -> tuple[Float[Array, ""], Tally]:
    """Return Eq. (5) of a weighed batch whose roll-out ended in `x_t`, and the figures that make it up."""
    config = stage.reward
    tokens, moved = predict(params, system, stage, inputs, x_t, t, anchor)
    found, has = score(params, system, stage, tokens, described), rewards.valid(system, config.weights, batch)
    # Selected, not multiplied by 0: a sample without its reference may have any score, even NaN.
    total = sum(weight * jnp.where(has[name], found[name], 0.0) for name, weight in config.weights.items())
    cost = -total if config.phi == "negative" else jax.nn.relu(config.margin - total)
    counted = batch[SHARE] > 0
    figures = {"reward": (total, counted)} | {f"reward_{name}": (found[name], has[name]) for name in config.weights}
    tally = {name: _tally(*pair) for name, pair in figures.items()}
    if config.anchor:
        tally["reward_anchor"] = _tally(moved[None], jnp.ones(1, bool))
    return jnp.mean(batch[SHARE] * jnp.where(counted, cost, 0.0)) + config.anchor * moved, tally


def names(stage: StageConfig) -> list[str]:
    """Return the names of the figures of `loss`."""
    anchor = ["reward_anchor"] if stage.reward.anchor else []
    return ["reward", *(f"reward_{name}" for name in stage.reward.weights), *anchor]


def value_and_grad(
    trainable: Params,
    frozen: Params,
    anchor: Params,
    system: USO,
    stage: StageConfig,
    batch: Batch,
    draws: tuple[flow_matching.Draws, Draws],
    active: Bool[Array, ""] | bool,
) -> tuple[tuple[Float[Array, ""], Float[Array, ""], Tally], tuple[Params, Params]]:
    """Return (L_pre, L_SRL, its figures) and the gradients of both; L_SRL is 0 and costs nothing until `active`.

    Args:
      trainable: the trained parameters.
      frozen: all others.
      anchor: the trained parameters as they were when the reward began; {} without that term.
      system: the model.
      stage: a stage with a reward.
      batch: a batch to which `weigh` has added shares.
      draws: of flow matching and of the reward.
      active: whether the reward has begun; a bool compiles one case only.
    """
    plain, rewarded = draws
    batch = flow_matching.drop_conditions(system, batch, plain)
    x0, inputs = jax.lax.stop_gradient(flow_matching.encode({**frozen, **trainable}, system, stage, batch))

    def pre(trainable):
        weights = flow_matching.weights(stage, batch)
        return flow_matching.error({**frozen, **trainable}, system, stage, x0, inputs, plain, weights)

    value, grads = jax.value_and_grad(pre)(trainable)
    # The roll-out waits for the gradient above, so that its activations are freed before.
    grads, rewarded = jax.lax.optimization_barrier((grads, rewarded))

    def learn():
        params = {**frozen, **trainable}
        described = rewards.describe(system, params, stage.reward.weights, batch)
        x_t = roll_out(params, system, stage, inputs, rewarded)
        then = {**frozen, **anchor} if anchor else None

        def cost(trainable):
            params = {**frozen, **trainable}
            return loss(params, system, stage, inputs, batch, described, x_t, rewarded.t, then)

        return jax.value_and_grad(cost, has_aux=True)(trainable)

    def wait():
        tally = {name: jnp.zeros(2) for name in names(stage)}
        return (jnp.zeros(()), tally), jax.tree.map(jnp.zeros_like, trainable)

    if isinstance(active, bool):
        (reward_value, tally), reward_grads = learn() if active else wait()
    else:
        (reward_value, tally), reward_grads = jax.lax.cond(active, learn, wait)
    return (value, reward_value, tally), (grads, reward_grads)


def _tally(values: Float[Array, " b"], counted: Bool[Array, " b"]) -> Float[Array, "2"]:
    return jnp.stack([jnp.sum(jnp.where(counted, values, 0.0)), jnp.sum(counted).astype(values.dtype)])
