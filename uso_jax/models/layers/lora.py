# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""USO's low-rank adapters.

Source: the LoRA processors in bytedance/USO, uso/flux/modules/layers.py. In a double block, 1 is the image stream and 2
the text stream. In a single block, the adapters cover the qkv part of `linear1` and all of `linear2`.

The blocks of a kind are one stack, so an adapter has the same rank in all of them, but the six adapters may differ.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


@jax.custom_vjp
def _product(x: Float[Array, "*b i"], kernel: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    return x @ kernel


def _gradients(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    """Compute the kernel's gradient with the narrow side on the left, which is up to 10 times faster in XLA on CPU."""
    x, kernel = saved
    if x.shape[-1] <= g.shape[-1]:
        return g @ kernel.T, jnp.einsum("...i,...o->io", x, g)
    # The barrier keeps XLA from swapping the operands to save the transposition.
    return g @ kernel.T, jax.lax.optimization_barrier(jnp.einsum("...o,...i->oi", g, x)).T


_product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _gradients)


def _dot_general(x, kernel, dimension_numbers, **_):
    return _product(x, kernel)


ADAPTERS = (
    *(f"double_blocks/processor/{name}" for name in ("qkv_lora1", "proj_lora1", "qkv_lora2", "proj_lora2")),
    *(f"single_blocks/processor/{name}" for name in ("qkv_lora", "proj_lora")),
)
"""Paths of the adapters in a transformer."""

LoraRules = tuple[tuple[str, int, float], ...]
"""(regex over ADAPTERS, rank, factor of the output, which is alpha / rank); the first match wins."""


class Sizes(NamedTuple):
    """Rank and factor of an adapter."""

    rank: int
    scale: float


def sizes(rank: int, scale: float, rules: Sequence[Sequence] = ()) -> Mapping[str, Sizes]:
    """Return the sizes of every adapter: those of the first rule that matches its path, or else `rank` and `scale`."""
    chosen = lambda path: next((rule[1:] for rule in rules if re.fullmatch(rule[0], path)), (rank, scale))
    return {path: Sizes(*chosen(path)) for path in ADAPTERS}


def check_rules(rules: LoraRules) -> None:
    """Raise ValueError for a rule that matches no adapter, or has no rank."""
    for regex, rank, _ in rules:
        if not any(re.fullmatch(regex, path) for path in ADAPTERS):
            raise ValueError(f"lora_rules: {regex!r} matches no adapter; they are {', '.join(ADAPTERS)}")
        if rank < 1:
            raise ValueError(f"lora_rules: the rank of {regex!r} must be positive, not {rank}")


class LoRA(nnx.Module):
    """Compute `up(down(x))` of rank r. Initially zero: `up` = 0, `down` ~ N(0, 1 / r**2)."""

    def __init__(self, in_features: int, out_features: int, rank: int, *, dtype, rngs: nnx.Rngs):
        down_init = jax.nn.initializers.normal(1 / rank)
        zeros = jax.nn.initializers.zeros
        options = dict(use_bias=False, dtype=dtype, dot_general=_dot_general, rngs=rngs)
        self.down = nnx.Linear(in_features, rank, kernel_init=down_init, **options)
        self.up = nnx.Linear(rank, out_features, kernel_init=zeros, **options)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return self.up(self.down(x))


class DoubleProcessor(nnx.Module):
    """The four adapters of a double block."""

    def __init__(self, hidden_size: int, sizes: Mapping[str, Sizes], *, dtype=jnp.bfloat16, rngs: nnx.Rngs):
        rank = lambda name: sizes[f"double_blocks/processor/{name}"].rank
        self.qkv_lora1 = LoRA(hidden_size, 3 * hidden_size, rank("qkv_lora1"), dtype=dtype, rngs=rngs)
        self.proj_lora1 = LoRA(hidden_size, hidden_size, rank("proj_lora1"), dtype=dtype, rngs=rngs)
        self.qkv_lora2 = LoRA(hidden_size, 3 * hidden_size, rank("qkv_lora2"), dtype=dtype, rngs=rngs)
        self.proj_lora2 = LoRA(hidden_size, hidden_size, rank("proj_lora2"), dtype=dtype, rngs=rngs)


class SingleProcessor(nnx.Module):
    """The two adapters of a single block."""

    def __init__(
        self, hidden_size: int, mlp_size: int, sizes: Mapping[str, Sizes], *, dtype=jnp.bfloat16, rngs: nnx.Rngs
    ):
        rank = lambda name: sizes[f"single_blocks/processor/{name}"].rank
        self.qkv_lora = LoRA(hidden_size, 3 * hidden_size, rank("qkv_lora"), dtype=dtype, rngs=rngs)
        self.proj_lora = LoRA(hidden_size + mlp_size, hidden_size, rank("proj_lora"), dtype=dtype, rngs=rngs)
