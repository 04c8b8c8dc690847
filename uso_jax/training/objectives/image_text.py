# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""SigLIP's loss: images and their captions find each other among all pairs of a batch (arXiv 2303.15343, eq. 1).

The text tower reads T5's token ids, so a prompt is tokenised once.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from uso_jax.models.clip import unit
from uso_jax.models.uso import USO, Batch, to_float
from uso_jax.params import Params
from uso_jax.training.objectives.contrastive import sigmoid_loss
from uso_jax.training.stage import StageConfig


def components(stage: StageConfig) -> set[str]:
    """Return the names of the weights components that the loss reads."""
    del stage
    return {"siglip", "siglip_text"}


def draw(rng: Key[Array, ""], system: USO, stage: StageConfig) -> dict:
    """Return no draws; the loss has nothing random."""
    del rng, system, stage
    return {}


def loss(params: Params, system: USO, stage: StageConfig, batch: Batch, draws: dict) -> Float[Array, ""]:
    """Return the mean sigmoid loss over a batch's pairs of target and prompt."""
    ids = batch["t5_ids"]
    image = system.module(params, "siglip")(to_float(batch["target"])).pooler_output
    matcher = system.module(params, "siglip_text")
    same = jnp.all(ids[:, None] == ids[None], axis=-1)  # two examples of a batch may share a caption
    return sigmoid_loss(
        unit(image), unit(matcher(ids)), jnp.exp(matcher.logit_scale[0]), matcher.logit_bias[0], same=same
    )
