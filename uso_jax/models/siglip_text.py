# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The SigLIP text transformer, whose pooled output meets that of the vision tower.

Source: transformers, models/siglip/modeling_siglip.py (`SiglipTextModel`); arXiv 2303.15343. Names are transformers'.
Shapes: b batch, l text tokens, c hidden_size, d projection_size.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from uso_jax.models import stack
from uso_jax.models.mha import check_heads
from uso_jax.models.siglip import SiglipLayer


@dataclass(frozen=True)
class SiglipTextConfig:
    """Sizes and numerics of the transformer; the defaults are google/siglip-so400m-patch14-384."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    max_position_embeddings: int = 64
    vocab_size: int = 32000
    projection_size: int = 1152  # of the pooled output: the vision tower's hidden_size, where the two are compared
    layer_norm_eps: float = 1e-6
    dtype: str = "float32"
    remat: str = "full"

    def __post_init__(self):
        check_heads(self.hidden_size, self.num_attention_heads)
        stack.check_remat(self.remat)

    @classmethod
    def tiny(cls, **changes) -> "SiglipTextConfig":
        """Give a transformer that meets `SiglipConfig.tiny`'s tower."""
        sizes = dict(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=12,
            vocab_size=64,
            projection_size=24,
            remat="none",
        )
        return cls(**(sizes | changes))


@jax.tree_util.register_dataclass
@dataclass
class SiglipTextOutput:
    """What the transformer gives: normalised tokens, and the projection of the last one (not of length 1)."""

    last_hidden_state: Float[Array, "b l c"]
    pooler_output: Float[Array, "b d"]


class SiglipText(nnx.Module):
    """Encode token ids; attention goes both ways and to padding too, so pad as in training: to the longest length."""

    def __init__(self, config: SiglipTextConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        self.token_embedding = nnx.Embed(c.vocab_size, c.hidden_size, dtype=c.dtype, rngs=rngs)
        self.position_embedding = nnx.Embed(c.max_position_embeddings, c.hidden_size, dtype=c.dtype, rngs=rngs)
        self.layers = stack.stack(lambda rngs: SiglipLayer(c, rngs=rngs), c.num_hidden_layers, rngs)
        self.final_layer_norm = nnx.LayerNorm(
            c.hidden_size, epsilon=c.layer_norm_eps, dtype=jnp.float32, use_fast_variance=False, rngs=rngs
        )
        self.head = nnx.Linear(c.hidden_size, c.projection_size, dtype=c.dtype, rngs=rngs)

    def __call__(self, input_ids: Int[Array, "b l"]) -> SiglipTextOutput:
        """Give the normalised last hidden state and the pooled output, which is read at the last token given.

        An id outside the vocabulary makes its sample NaN.
        """
        length, limit = input_ids.shape[1], self.config.max_position_embeddings
        if length > limit:
            raise ValueError(f"{length} tokens are too many: this text transformer has {limit} positions")
        x = self.token_embedding(input_ids) + self.position_embedding(jnp.arange(length))[None]
        x = stack.scan(self.layers, lambda layer, x: layer(x), x, remat=self.config.remat)
        x = self.final_layer_norm(x).astype(x.dtype)
        return SiglipTextOutput(x, self.head(x[:, -1]))
