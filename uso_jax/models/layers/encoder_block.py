# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The pre-norm transformer block of CLIP and SigLIP, and the layer norm of all encoders.

Parameter names match transformers' `CLIPEncoderLayer` and `SiglipEncoderLayer`. Shapes: b batch, l tokens, c width.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from uso_jax.models.layers.attention import MultiHeadAttention
from uso_jax.models.layers.mlp import MLP


def layer_norm(width: int, epsilon: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Return a layer norm over the last axis that computes and returns float32."""
    return nnx.LayerNorm(width, epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)


class EncoderBlock(nnx.Module):
    """Self-attention and an MLP, each with a pre-norm and a residual connection."""

    def __init__(
        self,
        width: int,
        mlp_width: int,
        num_heads: int,
        activation: Callable,
        *,
        epsilon: float,
        causal: bool = False,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        self.layer_norm1 = layer_norm(width, epsilon, rngs)
        self.self_attn = MultiHeadAttention(width, num_heads, causal=causal, dtype=dtype, rngs=rngs)
        self.layer_norm2 = layer_norm(width, epsilon, rngs)
        self.mlp = MLP(width, mlp_width, width, activation, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        y = self.layer_norm1(x).astype(x.dtype)
        x = x + self.self_attn(y, y)
        return x + self.mlp(self.layer_norm2(x).astype(x.dtype))
