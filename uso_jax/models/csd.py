# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Contrastive style descriptors (CSD): the image encoder of the style score and the style reward.

Source: https://github.com/learn2phoenix/CSD, CSD/model.py; arXiv 2404.01292. A CLIP vision tower with two matrices
instead of its projection. The authors recommend ignoring the content vector. Parameter names match the original.
Shapes: b batch, h w pixels, c hidden_size, d projection_dim.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from uso_jax.models.clip import CLIP, ClipVision, ClipVisionConfig, unit

CSD: ClipVisionConfig = CLIP["L/14"].vision
"""The released model's sizes; `projection_dim` is the width of both matrices."""


@jax.tree_util.register_dataclass
@dataclass
class CsdOutput:
    """The tower's class token, and unit-length content and style vectors in float32."""

    feature: Float[Array, "b c"]
    content: Float[Array, "b d"]
    style: Float[Array, "b d"]


class Csd(nnx.Module):
    """Encode images preprocessed as for CLIP. The dot product of two style vectors is their CSD score."""

    def __init__(self, config: ClipVisionConfig = CSD, *, rngs: nnx.Rngs):
        if not config.projection_dim:
            raise ValueError("projection_dim must be positive; it is the width of the style vector")
        self.config = config
        self.backbone = ClipVision(replace(config, projection_dim=0), rngs=rngs)
        shape = (config.hidden_size, config.projection_dim)
        matrix = lambda: nnx.Param(config.hidden_size**-0.5 * jax.random.normal(rngs.params(), shape))
        self.last_layer_style = matrix()
        self.last_layer_content = matrix()

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> CsdOutput:
        feature = self.backbone(pixels).pooler_output
        # Scores of matching and other styles differ by hundredths, which bfloat16 cannot resolve.
        x = feature.astype(jnp.float32)
        content, style = (m[...].astype(jnp.float32) for m in (self.last_layer_content, self.last_layer_style))
        return CsdOutput(feature, unit(x @ content), unit(x @ style))
