# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The loss of the classifier of drawings: name the subject and the style of an image.

Half of the images pass through the autoencoder first, because generated images are decoded ones.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from uso_jax.models.uso import USO, Batch, to_float
from uso_jax.params import Params
from uso_jax.training.stage import StageConfig


def components(stage: StageConfig) -> set[str]:
    """Return the names of the weights components that the loss reads."""
    del stage
    return {"autoencoder", "judge"}


def draw(rng: Key[Array, ""], system: USO, stage: StageConfig) -> dict:
    """Return no draws; the loss has nothing random."""
    del rng, system, stage
    return {}


def loss(params: Params, system: USO, stage: StageConfig, batch: Batch, draws: dict) -> Float[Array, ""]:
    """Return the mean of the two cross-entropies over a batch's targets."""
    images = to_float(batch["target"])
    half = images.shape[0] // 2
    codec = system.module(params, "autoencoder")
    decoded = jnp.clip(codec.decode(codec.encode(images[:half])), -1, 1)
    subject, style = system.module(params, "judge")(jnp.concatenate([decoded, images[half:]]))
    errors = optax.softmax_cross_entropy_with_integer_labels(subject, batch["subject_label"])
    return jnp.mean(errors + optax.softmax_cross_entropy_with_integer_labels(style, batch["style_label"])) / 2
