# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Alignment by words: style tokens become what the base model reads for a caption of the style.

    E || p_i(style image) - txt_in(T(caption))_i ||^2        i = 1 ... k

p_i is token i of the projector and T the text encoder. The transformer is not run, so a step costs little, and a base
that follows the style's words follows the tokens before any adapter is trained. The last `free_tokens` of the projector
are left to other stages, for what words do not say. The prompts of the data must describe the style of the style image
and not its subject ("halftone style, blue on yellow").

The paper aligns by the flow-matching loss instead (Sec. 3.2); both can follow each other as stages.
Shapes: b batch, t text tokens, s style tokens, k tokens with a word, d transformer width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from uso_jax.models.uso import USO, Batch
from uso_jax.params import Params
from uso_jax.training.objectives import flow_matching
from uso_jax.training.stage import StageConfig

sample = flow_matching.sample


def components(stage: StageConfig) -> set[str]:
    """Return the names of the weights components that the loss reads."""
    return flow_matching.components(stage) | {"siglip", "projector"}


def draw(rng: Key[Array, ""], system: USO, stage: StageConfig) -> dict:
    """Return no draws; the loss has nothing random."""
    del rng, system, stage
    return {}


def loss(params: Params, system: USO, stage: StageConfig, batch: Batch, draws: dict) -> Float[Array, ""]:
    """Return the mean squared difference of style tokens and words; examples without a style image count as zero."""
    del draws
    inputs = system.inputs(params, batch, content=False, style=True)
    tokens = system.style_tokens(params, inputs)
    words = system.module(params, "transformer").txt_in(inputs.txt.astype(tokens.dtype))
    k = min(tokens.shape[1] - stage.free_tokens, words.shape[1])
    errors = jnp.square((tokens[:, :k] - jax.lax.stop_gradient(words[:, :k])).astype(jnp.float32))
    return jnp.mean(jnp.mean(errors, axis=(1, 2)) * inputs.style_valid[:, 0])
