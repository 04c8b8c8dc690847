# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The two-layer perceptron that every network here uses."""

import functools
from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Float


# Its derivative by jvp would keep five arrays of x's size; this one keeps x, and the rest is cheaper than reading it.
@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu_tanh(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """GELU in its tanh approximation, which FLUX and SigLIP were trained with."""
    return jax.nn.gelu(x, approximate=True)


class MLP(nnx.Module):
    """Two linear layers with an activation between them; a `silent` one starts with outputs of 0."""

    def __init__(
        self,
        in_dim: int,
        mid_dim: int,
        out_dim: int,
        activation: Callable,
        *,
        silent: bool = False,
        dtype,
        rngs: nnx.Rngs,
    ):
        out_init = nnx.initializers.zeros if silent else nnx.nn.linear.default_kernel_init
        self.in_layer = nnx.Linear(in_dim, mid_dim, dtype=dtype, rngs=rngs)
        self.out_layer = nnx.Linear(mid_dim, out_dim, kernel_init=out_init, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return self.out_layer(self.activation(self.in_layer(x)))
