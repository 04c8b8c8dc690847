# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The two-layer perceptron shared by all transformers."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from uso_jax.models.layers.linear import Linear


# Without checkpoint, the backward pass would keep five arrays of x's size. Recomputing them from x is cheaper.
@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu_tanh(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Apply the tanh approximation of GELU that FLUX and SigLIP use."""
    return jax.nn.gelu(x, approximate=True)


@functools.partial(jax.checkpoint, prevent_cse=False)
def swiglu(x: Float[Array, "*b two_d"]) -> Float[Array, "*b d"]:
    """Gate the second half of the channels by SiLU of the first."""
    gate, value = jnp.split(x, 2, axis=-1)
    return jax.nn.silu(gate) * value


class MLP(nnx.Module):
    """Two linear layers with an activation in between. With `silent`, the initial output is 0.

    A gated activation, such as `swiglu`, reads twice the channels that it returns.
    """

    def __init__(
        self,
        in_dim: int,
        mid_dim: int,
        out_dim: int,
        activation: Callable,
        *,
        gated: bool = False,
        use_bias: bool = True,
        silent: bool = False,
        dtype,
        rngs: nnx.Rngs,
    ):
        out_init = nnx.initializers.zeros if silent else nnx.initializers.lecun_normal()
        options = dict(use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.in_layer = Linear(in_dim, 2 * mid_dim if gated else mid_dim, **options)
        self.out_layer = Linear(mid_dim, out_dim, kernel_init=out_init, **options)
        self.activation = activation

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return self.out_layer(self.activation(self.in_layer(x)))
