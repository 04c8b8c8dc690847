# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The linear layer of networks whose kernels may be quantised."""

from flax import nnx
from jaxtyping import Array, Float

from uso_jax.models.layers.quantized_kernel import QuantizedKernel


class Linear(nnx.Linear):
    """`nnx.Linear`, which leaves the product to a quantised kernel.

    An `nnx.Linear` itself reads such a kernel scaled, as an array: equal up to rounding, with the kernel written once.
    """

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        kernel = self.kernel.get_value()
        if not isinstance(kernel, QuantizedKernel):
            return super().__call__(x)
        y = kernel.multiply(x)
        if self.bias is not None:
            y = y + self.bias[...].astype(y.dtype).reshape([1] * (y.ndim - 1) + [-1])
        return y.astype(kernel.dtype)
