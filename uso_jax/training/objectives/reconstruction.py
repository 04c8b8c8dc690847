# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The loss of an autoencoder: decode a sample of the posterior, and keep the posterior near unit normal.

    L = mean |x - x'| / 4 + mean (x - x')^2 + beta KL(q(z | x) || N(0, 1)) per latent number

A flow model starts from the prior, so latents of unit variance need no further scaling.
Shapes: b batch, h w pixels.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from uso_jax.models.uso import USO, Batch, to_bytes, to_float
from uso_jax.params import Params
from uso_jax.training.stage import StageConfig

BETA = 1e-3


@jax.tree_util.register_dataclass
@dataclass
class Draws:
    """The posterior's noise."""

    noise: Float[Array, "*micro b lh lw z"]


def components(stage: StageConfig) -> set[str]:
    """Return the names of the weights components that the loss reads."""
    del stage
    return {"autoencoder"}


def draw(rng: Key[Array, ""], system: USO, stage: StageConfig) -> Draws:
    """Draw the noise of a whole batch."""
    config = system.config.autoencoder
    height, width = (side // config.downscale for side in stage.target_size)
    return Draws(jax.random.normal(rng, (stage.batch_size, height, width, config.z_channels)))


def loss(params: Params, system: USO, stage: StageConfig, batch: Batch, draws: Draws) -> Float[Array, ""]:
    """Return the mean loss of a batch's targets."""
    codec = system.module(params, "autoencoder")
    images = to_float(batch["target"])
    mean, logvar = codec.moments(images)
    error = codec.decode_unscaled(mean + jnp.exp(0.5 * logvar) * draws.noise) - images
    divergence = 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1 - logvar)
    return jnp.mean(jnp.abs(error)) / 4 + jnp.mean(error**2) + BETA * divergence


def sample(params: Params, system: USO, stage: StageConfig, batch: Batch, settings: Any) -> UInt8[Array, "b h w 3"]:
    """Encode and decode a batch's targets."""
    codec = system.module(params, "autoencoder")
    return to_bytes(codec.decode(codec.encode(to_float(batch["target"]))))
