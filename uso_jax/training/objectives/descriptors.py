# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""CSD's loss: style vectors of one style agree, content vectors of one subject agree (arXiv 2404.01292).

Target and style image of an example share the style, target and content image share the subject. The source's labels
name the subject. Two examples of a batch count as different styles, because their palettes and textures differ.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from uso_jax.images import preprocess
from uso_jax.models.uso import USO, Batch, to_float
from uso_jax.params import Params
from uso_jax.training.objectives.contrastive import label_contrastive_loss
from uso_jax.training.stage import StageConfig

TEMPERATURE = 0.1


def components(stage: StageConfig) -> set[str]:
    """Return the names of the weights components that the loss reads."""
    del stage
    return {"csd"}


def draw(rng: Key[Array, ""], system: USO, stage: StageConfig) -> dict:
    """Return no draws; the loss has nothing random."""
    del rng, system, stage
    return {}


def loss(params: Params, system: USO, stage: StageConfig, batch: Batch, draws: dict) -> Float[Array, ""]:
    """Return the sum of the two heads' supervised contrastive losses."""
    encoder = system.module(params, "csd")
    b = batch["target"].shape[0]
    images = jnp.concatenate([batch["target"], batch["style"][:, 0], batch["content"]])
    vectors = encoder(preprocess.CSD.resized(encoder.config.image_size).device(to_float(images)))
    style_labels = jnp.tile(jnp.arange(b), 2)
    content_labels = jnp.tile(batch["subject_label"], 2)
    targets_contents = jnp.concatenate([vectors.content[:b], vectors.content[2 * b :]])
    return label_contrastive_loss(vectors.style[: 2 * b], style_labels, TEMPERATURE) + label_contrastive_loss(
        targets_contents, content_labels, TEMPERATURE
    )
