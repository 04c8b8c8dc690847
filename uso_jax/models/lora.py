# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters where USO places them (bytedance/USO, uso/flux/modules/layers.py, the LoRA processors).

In a double block, 1 is the image stream and 2 the text stream. In a single block, the adapter covers the qkv part of
`linear1` and all of `linear2`.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class LoRA(nnx.Module):
    """Add `up(down(x))` of rank r to a linear layer; starts as zero (`up` = 0, `down` ~ N(0, 1 / r**2))."""

    def __init__(self, in_features: int, out_features: int, rank: int, *, dtype, rngs: nnx.Rngs):
        down_init = jax.nn.initializers.normal(1 / rank)
        zeros = jax.nn.initializers.zeros
        self.down = nnx.Linear(in_features, rank, use_bias=False, dtype=dtype, kernel_init=down_init, rngs=rngs)
        self.up = nnx.Linear(rank, out_features, use_bias=False, dtype=dtype, kernel_init=zeros, rngs=rngs)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return self.up(self.down(x))


class DoubleProcessor(nnx.Module):
    """The four adapters of a double block."""

    def __init__(self, hidden_size: int, rank: int, *, dtype=jnp.bfloat16, rngs: nnx.Rngs):
        self.qkv_lora1 = LoRA(hidden_size, 3 * hidden_size, rank, dtype=dtype, rngs=rngs)
        self.proj_lora1 = LoRA(hidden_size, hidden_size, rank, dtype=dtype, rngs=rngs)
        self.qkv_lora2 = LoRA(hidden_size, 3 * hidden_size, rank, dtype=dtype, rngs=rngs)
        self.proj_lora2 = LoRA(hidden_size, hidden_size, rank, dtype=dtype, rngs=rngs)


class SingleProcessor(nnx.Module):
    """The two adapters of a single block."""

    def __init__(self, hidden_size: int, mlp_size: int, rank: int, *, dtype=jnp.bfloat16, rngs: nnx.Rngs):
        self.qkv_lora = LoRA(hidden_size, 3 * hidden_size, rank, dtype=dtype, rngs=rngs)
        self.proj_lora = LoRA(hidden_size + mlp_size, hidden_size, rank, dtype=dtype, rngs=rngs)
