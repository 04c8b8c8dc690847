# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Sharding constraints on activations under the mesh that a program is traced for.

With a "sequence" mesh axis, each device holds a shard of the tokens everywhere except in attention, where it holds all
tokens of a shard of the heads (DeepSpeed Ulysses, arXiv 2309.14509). `by_heads` and `by_tokens` mark the transitions;
XLA turns them into all-to-all exchanges.

Shapes: b batch, l tokens, n heads, k head width.
"""

import math

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float


def platform() -> str:
    """Return the target platform: that of the mesh, which may describe devices this machine does not have."""
    return getattr(_device(), "platform", None) or jax.default_backend()


def device_kind() -> str:
    """Return JAX's name of the target devices, such as "TPU v5 lite"."""
    return getattr(_device(), "device_kind", None) or jax.devices()[0].device_kind


def batch_axes(size: int) -> tuple[str, ...]:
    """Return the mesh axes that shard a batch of `size`: () without a mesh or if `size` is not divisible by them."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in ("data", "fsdp") if axis in mesh.axis_names)
    return axes if size % math.prod(mesh.shape[axis] for axis in axes) == 0 else ()


def sequence_shards() -> int:
    """Return the size of the "sequence" mesh axis, which shards the tokens of a sample; 1 without it."""
    return dict(jax.sharding.get_abstract_mesh().shape).get("sequence", 1)


def by_heads(x: Float[Array, "b l n k"]) -> Float[Array, "b l n k"]:
    """Reshard from tokens to heads: each device then holds all tokens of some heads. A no-op without token shards."""
    if sequence_shards() == 1:
        return x
    return jax.lax.with_sharding_constraint(x, P(batch_axes(len(x)) or None, None, head_axes(x.shape[2])))


def by_tokens(x: Float[Array, "b l n k"]) -> Float[Array, "b l n k"]:
    """Invert `by_heads`. Heads stay sharded over "tensor"."""
    if sequence_shards() == 1:
        return x
    heads = tuple(axis for axis in head_axes(x.shape[2]) if axis != "sequence")
    return jax.lax.with_sharding_constraint(x, P(batch_axes(len(x)) or None, "sequence", heads or None))


def head_axes(num_heads: int) -> tuple[str, ...]:
    """Return the mesh axes that shard `num_heads` heads: "tensor", then "sequence", where they divide it."""
    sizes, axes = dict(jax.sharding.get_abstract_mesh().shape), ()
    for axis in ("tensor", "sequence"):
        if num_heads % math.prod(sizes.get(name, 1) for name in (*axes, axis)) == 0 and axis in sizes:
            axes += (axis,)
    return axes


def _device():
    return getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)


def as_it_lies(x: jax.Array) -> jax.Array:
    """Pin the layout of a layer's weights to that of memory, on one TPU chip.

    XLA would otherwise turn the weights of all layers of a scan around at once to suit one product. On more devices
    they would be gathered to be pinned.
    """
    if platform() != "tpu" or jax.sharding.get_abstract_mesh().size > 1:
        return x
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))
