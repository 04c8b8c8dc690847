# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Kernels of linear layers in 8 or 4 bits, and their products.

With one scale for each output, XLA scales the numbers while a product reads them, and no kernel is written. A kernel
with a scale for each group of inputs is written first.

Products in 8 bits quantise their inputs too, each token by its largest magnitude (dynamic W8A8, LLM.int8(), arXiv
2208.07339, without its outliers in 16 bits): int8 accumulates in int32, float8_e4m3fn in float32.
Shapes: i inputs, o outputs.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uso_jax.parallel.constraints import as_it_lies, platform


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuantizedKernel:
    """A kernel as a layer's parameter.

    Attributes:
      numbers: [layers,] i o, integers or float8.
      scales: [layers,] groups o, float32.
      dtype: that the layer computes in.
      in_8_bits: products of tokens quantise these too.
    """

    numbers: Array
    scales: Array
    dtype: Any = field(default=jnp.float32, metadata=dict(static=True))
    in_8_bits: bool = field(default=False, metadata=dict(static=True))

    def __getitem__(self, index: Any) -> Float[Array, "*layers i o"]:
        *layers, inputs, outputs = shape = self.numbers.shape
        groups = self.scales.shape[-2]
        blocks = as_it_lies(self.numbers).astype(jnp.float32).reshape(*layers, groups, inputs // groups, outputs)
        kernel = (blocks * self.scales[..., None, :]).reshape(shape).astype(self.dtype)
        # Without the barrier XLA keeps both factors in float32, each as large as the kernel, until the product.
        return jax.lax.optimization_barrier(kernel)[index]

    def multiply(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        """Return the product of `x` and one layer's kernel, in the layer's dtype or in float32."""
        if self.scales.shape[0] > 1:
            return x.astype(self.dtype) @ self[...]
        numbers, scales = as_it_lies(self.numbers), self.scales.reshape([1] * (x.ndim - 1) + [-1])
        if not self.in_8_bits or x.ndim < 3:  # the time of one vector is that of reading the kernel
            # XLA scales the numbers while the product reads them.
            return x.astype(self.dtype) @ (numbers.astype(jnp.float32) * self.scales).astype(self.dtype)
        tokens, extents = quantize_tokens(x, numbers.dtype)
        return _product(tokens, numbers).astype(jnp.float32) * (extents * scales)


def quantize_tokens(x: Float[Array, "*b i"], dtype: Any) -> tuple[Array, Float[Array, "*b 1"]]:
    """Return the numbers of `x` in an 8-bit dtype, and each token's scale."""
    integers = jnp.issubdtype(dtype, jnp.integer)
    largest = float((jnp.iinfo if integers else jnp.finfo)(dtype).max)
    x = x.astype(jnp.float32)
    scales = jnp.abs(x).max(axis=-1, keepdims=True) / largest
    scales = jnp.where(scales == 0, 1, scales)
    x = x * (1 / scales)  # cheaper than dividing every number
    return (jnp.round(x) if integers else x).astype(dtype), scales


def _product(x: Array, kernel: Array) -> Array:
    """Multiply in 8 bits; a CPU has no such units and multiplies the same numbers in float32."""
    if platform() == "cpu":
        return x.astype(jnp.float32) @ kernel.astype(jnp.float32)
    total = jnp.int32 if jnp.issubdtype(kernel.dtype, jnp.integer) else jnp.float32
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=total)
