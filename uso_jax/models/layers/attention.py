# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The attention layer that the image and text encoders share."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from uso_jax.models.attention.dispatch import attention, on_cpu
from uso_jax.parallel.constraints import platform


def check_heads(hidden_size: int, num_heads: int) -> None:
    """Refuse a width that does not divide into heads."""
    if hidden_size % num_heads:
        raise ValueError(f"hidden_size {hidden_size} does not divide into {num_heads} heads")


class MultiHeadAttention(nnx.Module):
    """Attention with separate query, key and value projections, softmax in float32."""

    def __init__(self, width: int, num_heads: int, *, causal: bool = False, dtype, rngs: nnx.Rngs):
        self.num_heads, self.causal = num_heads, causal
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nnx.Linear(width, width, dtype=dtype, rngs=rngs))

    def __call__(self, queries: Float[Array, "b q c"], keys: Float[Array, "b s c"]) -> Float[Array, "b q c"]:
        q, k, v = self.q_proj(queries), self.k_proj(keys), self.v_proj(keys)
        q, k, v = (x.reshape(*x.shape[:2], self.num_heads, -1) for x in (q, k, v))
        if self.causal:
            out = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")
        else:
            # At most 1,369 tokens, heads as narrow as 64: too little for an accelerator's fused kernels to pay.
            out = attention(q, k, v, implementation=on_cpu(q, k) if platform() == "cpu" else "xla")
        return self.out_proj(out.reshape(queries.shape))
