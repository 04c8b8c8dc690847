# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The flow-matching loss of USO's stages.

    L_pre = E w(t) || v_theta(x_t, t | text, style, content) - (e - x_0) ||^2   paper Eq. (5)

The paper's w(t) is 1 and its times are uniform; `noise_levels` has other choices. With `huber`, the error of a number
beyond that many standard deviations of the latent counts linearly. Tokens outside a target's mask and
regularisation images have their own weights (`weights`); the mean is over all tokens, whatever they weigh.

Shapes: b batch, l target tokens, d token channels.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from uso_jax import flow
from uso_jax.models.components import folders
from uso_jax.models.uso import USO, Batch, Inputs
from uso_jax.params import Params
from uso_jax.training import rewards
from uso_jax.training.objectives import noise_levels
from uso_jax.training.stage import StageConfig

_TEXT = folders(lambda row: row.encodes == "text")  # of any base model; a system has those of its family
_CLIP_START = 3  # tokens of a cut caption that CLIP reads
_SEED = 20_25  # of the noise of sampled images; it does not depend on the run's seed


@jax.tree_util.register_dataclass
@dataclass
class Draws:
    """Everything random in one step; split into micro-batches, it has one more leading axis."""

    noise: Float[Array, "*micro b l d"]
    t: Float[Array, "*micro b"]
    drop_text: Bool[Array, "*micro b"]
    drop_content: Bool[Array, "*micro b"]
    drop_style: Bool[Array, "*micro b"]
    cut_clip: Bool[Array, "*micro b"]


def components(stage: StageConfig) -> set[str]:
    """Return the names of the weights components that the loss reads."""
    style = {"siglip", "projector"} if "style" in stage.conditions else set()
    rewarded = set() if stage.scored is None else rewards.components(stage.scored.names)
    return {"transformer", "lora", "autoencoder", *_TEXT} | style | rewarded


def draw(rng: Key[Array, ""], system: USO, stage: StageConfig) -> Draws:
    """Draw noise, times and dropped conditions for a whole batch of `stage.batch_size`."""
    names = ("noise", "t", "text", "content", "style", "all", "clip")
    keys = dict(zip(names, jax.random.split(rng, len(names)), strict=True))
    rows, columns = system.token_grid(*stage.target_size)
    b, num_tokens = stage.batch_size, rows * columns
    mu = system.family.shift_mu(num_tokens) if stage.shift_mu is None else stage.shift_mu
    chosen = lambda name, rate: jax.random.bernoulli(keys[name], rate, (b,))
    drop_all = chosen("all", stage.all_dropout)
    drop = lambda name, rate: chosen(name, rate) | drop_all
    return Draws(
        noise=jax.random.normal(keys["noise"], (b, num_tokens, system.config.transformer.in_channels)),
        t=noise_levels.draw_times(keys["t"], stage, mu, b),
        drop_text=drop("text", stage.text_dropout),
        drop_content=drop("content", stage.content_dropout),
        drop_style=drop("style", stage.style_dropout),
        cut_clip=chosen("clip", stage.clip_cut),
    )


def drop_conditions(system: USO, batch: Batch, draws: Draws) -> Batch:
    """Replace dropped prompts by the empty prompt, cut CLIP's captions and mark dropped images as absent."""
    nulls = system.null_tokens if "txt" not in batch else dict(zip(("txt", "vec"), system.null_text, strict=True))
    nulls = {name: null for name, null in nulls.items() if null is not None}  # some models have no pooled vector

    def without(null: Array | np.ndarray, value: Array) -> Array:
        dropped = draws.drop_text.reshape(-1, *(1,) * null.ndim)
        return jnp.where(dropped, jnp.asarray(null, value.dtype)[None], value)

    empty = {name: without(null, batch[name]) for name, null in nulls.items()}
    valid = {
        "content_valid": batch["content_valid"] & ~draws.drop_content,
        "style_valid": batch["style_valid"] & ~draws.drop_style[:, None],
    }
    if "clip_ids" in empty:
        empty["clip_ids"] = _cut(empty["clip_ids"], draws.cut_clip, system.null_tokens["clip_ids"])
    return {**batch, **empty, **valid}


def _cut(ids: Int[Array, "b u"], chosen: Bool[Array, " b"], null: Int[np.ndarray, " u"]) -> Int[Array, "b u"]:
    """End chosen captions after their first tokens, as the tokenizer ends the empty prompt."""
    cut = jnp.concatenate([ids[:, :_CLIP_START], jnp.broadcast_to(null, ids.shape)[:, :-_CLIP_START]], axis=1)
    return jnp.where(chosen[:, None], cut, ids)


def encode(params: Params, system: USO, stage: StageConfig, batch: Batch) -> tuple[Float[Array, "b l d"], Inputs]:
    """Return the targets' tokens and the transformer's other inputs; neither depends on the transformer."""
    return system.latent_tokens(params, batch, "target"), encode_conditions(params, system, stage, batch)


def encode_conditions(params: Params, system: USO, stage: StageConfig, batch: Batch) -> Inputs:
    """Return the transformer's inputs of a batch, with the references that the stage has."""
    conditions = {name: name in stage.conditions for name in ("content", "style")}
    return system.inputs(params, batch, **conditions, isolated=stage.isolated)


def weights(stage: StageConfig, batch: Batch) -> Float[Array, "#b #l"] | None:
    """Return the weight of each token in the loss, by "mask" and "loss_weight" of a batch; None if it has neither."""
    found = None
    if "mask" in batch:
        mask = batch["mask"].reshape(len(batch["mask"]), -1)
        found = mask + stage.outside_mask * (1 - mask)
    if "loss_weight" in batch:
        found = batch["loss_weight"][:, None] * (1.0 if found is None else found)
    return found


def error(
    params: Params,
    system: USO,
    stage: StageConfig,
    x0: Float[Array, "b l d"],
    inputs: Inputs,
    draws: Draws,
    weights: Float[Array, "#b #l"] | None = None,
) -> Float[Array, ""]:
    """Return the mean weighted velocity error of an encoded batch, in float32."""
    x_t = flow.interpolate(x0, draws.noise, draws.t)
    predicted = system.velocity(params, inputs, x_t, draws.t, stage.guidance)
    difference = predicted - flow.velocity_target(x0, draws.noise)
    # optax's Huber loss is half of the squared error near zero.
    errors = 2 * optax.huber_loss(difference, delta=stage.huber) if stage.huber else jnp.square(difference)
    if stage.loss_weight != "none":
        errors = errors * noise_levels.weight(stage, draws.t)[:, None, None]
    if weights is not None:
        errors = errors * weights[..., None]
    return jnp.mean(errors)


def loss(params: Params, system: USO, stage: StageConfig, batch: Batch, draws: Draws) -> Float[Array, ""]:
    """Return the mean weighted velocity error of a batch, in float32."""
    x0, inputs = encode(params, system, stage, drop_conditions(system, batch, draws))
    return error(params, system, stage, x0, inputs, draws, weights(stage, batch))


def sample(params: Params, system: USO, stage: StageConfig, batch: Batch, settings: Any) -> UInt8[Array, "b h w 3"]:
    """Generate an image for every example, from the same noise on every call.

    `settings` has `num_steps`, `guidance` and `shift`, as HeldoutConfig and EvaluationConfig do.
    """
    height, width = stage.target_size
    return system.generate(
        params,
        encode_conditions(params, system, stage, batch),
        jax.random.key(_SEED),
        height=height,
        width=width,
        num_steps=settings.num_steps,
        guidance=settings.guidance,
        shift=settings.shift,
    )
