# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Contrastive style descriptors (CSD): the image encoder whose style vectors the style score and reward compare.

Source: https://github.com/learn2phoenix/CSD, CSD/model.py; arXiv 2404.01292. A CLIP vision tower with two matrices in
place of its projection; the authors advise to ignore the content vector. Names are the original's.
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
    """What the encoder gives: the tower's class token, and its content and style vectors, of length 1, in float32."""

    feature: Float[Array, "b c"]
    content: Float[Array, "b d"]
    style: Float[Array, "b d"]


class Csd(nnx.Module):
    """Encode images, preprocessed as CLIP's; the product of two style vectors is their CSD score."""

    def __init__(self, config: ClipVisionConfig = CSD, *, rngs: nnx.Rngs):
        if not config.projection_dim:
            raise ValueError("projection_dim must be positive: it is the width of the style vector")
        self.config = config
        self.backbone = ClipVision(replace(config, projection_dim=0), rngs=rngs)
        shape = (config.hidden_size, config.projection_dim)
        for name in ("last_layer_style", "last_layer_content"):
            setattr(self, name, nnx.Param(config.hidden_size**-0.5 * jax.random.normal(rngs.params(), shape)))

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> CsdOutput:
        feature = self.backbone(pixels).pooler_output
        # Scores of a style and of its absence differ by hundredths: no place for bfloat16.
        x = feature.astype(jnp.float32)
        content, style = (m[...].astype(jnp.float32) for m in (self.last_layer_content, self.last_layer_style))
        return CsdOutput(feature, unit(x @ content), unit(x @ style))
