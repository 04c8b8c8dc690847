# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Guidance distillation: one pass at an embedded scale replaces the two of classifier-free guidance, as in FLUX.1-dev.

    E || v_theta(x_t, t, w | c) - (e - x_0) - (w - 1) sg(v_theta(x_t, t, 1 | c) - v_theta(x_t, t, 1 | nothing)) ||^2

The optimum is v(nothing) + w (v(c) - v(nothing)), classifier-free guidance (arXiv 2207.12598). The model at w = 1 is
its own teacher (model guidance, arXiv 2502.12154), so no second copy is kept, unlike in arXiv 2210.03142. "nothing"
drops text, content and style together; the model learns it through the stage's `all_dropout`.
Shapes: b batch, l target tokens, d token channels.
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from uso_jax import flow
from uso_jax.models.uso import USO, Batch, Inputs
from uso_jax.params import Params
from uso_jax.training.objectives import flow_matching
from uso_jax.training.stage import StageConfig

components, sample = flow_matching.components, flow_matching.sample


@jax.tree_util.register_dataclass
@dataclass
class Draws:
    """Everything random in one step: the draws of flow matching, and the scales."""

    plain: flow_matching.Draws
    scale: Float[Array, "*micro b"]


def draw(rng: Key[Array, ""], system: USO, stage: StageConfig) -> Draws:
    """Draw as flow matching does; a quarter of the scales is 1, the others are uniform up to `max_guidance`."""
    which, where = jax.random.split(jax.random.fold_in(rng, 1))
    scale = jax.random.uniform(where, (stage.batch_size,), minval=1.0, maxval=stage.max_guidance)
    plain = jax.random.bernoulli(which, 0.25, (stage.batch_size,))
    return Draws(flow_matching.draw(rng, system, stage), jnp.where(plain, 1.0, scale))


def loss(params: Params, system: USO, stage: StageConfig, batch: Batch, draws: Draws) -> Float[Array, ""]:
    """Return the mean squared velocity error of a batch, in float32."""
    plain, w = draws.plain, draws.scale[:, None, None]
    x0, inputs = flow_matching.encode(params, system, stage, flow_matching.drop_conditions(system, batch, plain))
    x_t = flow.interpolate(x0, plain.noise, plain.t)
    at_one = lambda inputs: system.velocity(params, inputs, x_t, plain.t, 1.0)
    difference = jax.lax.stop_gradient(at_one(inputs) - at_one(without(params, system, inputs)))
    target = flow.velocity_target(x0, plain.noise) + (w - 1) * difference
    return jnp.mean(jnp.square(system.velocity(params, inputs, x_t, plain.t, draws.scale) - target))


def without(params: Params, system: USO, inputs: Inputs) -> Inputs:
    """Return the inputs with the empty prompt and all images marked as absent."""
    if system.null_text is not None:
        null = [jnp.asarray(value)[None] for value in system.null_text]
    else:
        null = system.encode_text(
            params, {name: jnp.asarray(value)[None] for name, value in system.null_tokens.items()}
        )
    txt, y = (jnp.broadcast_to(value, like.shape) for value, like in zip(null, (inputs.txt, inputs.y), strict=True))
    absent = {
        name: jnp.zeros_like(valid)
        for name in ("style_valid", "ref_valid")
        if (valid := getattr(inputs, name)) is not None
    }
    return dataclasses.replace(inputs, txt=txt, y=y, **absent)
