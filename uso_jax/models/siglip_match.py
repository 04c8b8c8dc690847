# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""SigLIP's other half: the text transformer, and the learned scale and bias of the pairs' logits.

Source: transformers, models/siglip/modeling_siglip.py (`SiglipModel`); arXiv 2303.15343, with its initial values.
Shapes: n images, m texts, d projection_size.
"""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from uso_jax.models.siglip_text import SiglipText, SiglipTextConfig


class SiglipMatch(nnx.Module):
    """Give texts' vectors, and what `contrastive.sigmoid_loss` needs besides."""

    def __init__(self, config: SiglipTextConfig, *, rngs: nnx.Rngs):
        self.text = SiglipText(config, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.full((1,), math.log(10.0)))  # as its logarithm
        self.logit_bias = nnx.Param(jnp.full((1,), -10.0))

    def __call__(self, input_ids: Int[Array, "m l"]) -> Float[Array, "m d"]:
        """Encode texts; their vectors are not of length 1."""
        return self.text(input_ids).pooler_output
