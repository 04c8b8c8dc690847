# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Multi-head attention of the image and text encoders.

Shapes: b batch, q queries, s keys, c width.
"""

import jax
from flax import nnx
from jaxtyping import Array, Float

from uso_jax.models.attention.dispatch import attention, on_cpu
from uso_jax.models.layers.linear import Linear
from uso_jax.parallel.constraints import platform


def check_heads(hidden_size: int, num_heads: int) -> None:
    """Raise a ValueError if the width is not divisible by the number of heads."""
    if hidden_size % num_heads:
        raise ValueError(f"hidden_size {hidden_size} is not divisible by {num_heads} heads")


class MultiHeadAttention(nnx.Module):
    """Attention with separate query, key and value projections; the softmax is in float32."""

    def __init__(self, width: int, num_heads: int, *, causal: bool = False, dtype, rngs: nnx.Rngs):
        self.num_heads, self.causal = num_heads, causal
        self.q_proj = Linear(width, width, dtype=dtype, rngs=rngs)
        self.k_proj = Linear(width, width, dtype=dtype, rngs=rngs)
        self.v_proj = Linear(width, width, dtype=dtype, rngs=rngs)
        self.out_proj = Linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, queries: Float[Array, "b q c"], keys: Float[Array, "b s c"]) -> Float[Array, "b q c"]:
        q, k, v = self.q_proj(queries), self.k_proj(keys), self.v_proj(keys)
        q, k, v = (x.reshape(*x.shape[:2], self.num_heads, -1) for x in (q, k, v))
        if self.causal:
            out = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")
        else:
            # With at most 1,369 tokens and heads of 64 channels, fused accelerator kernels do not pay off.
            out = attention(q, k, v, implementation=on_cpu(q, k) if platform() == "cpu" else "xla")
        return self.out_proj(out.reshape(queries.shape))
