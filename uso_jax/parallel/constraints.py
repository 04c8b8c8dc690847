# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The mesh that a program is traced under: which devices it is for, and by which axes activations are split.

Where the mesh has a "sequence" axis, each device keeps its share of the tokens for everything but attention, and for
attention all tokens of its share of the heads (DeepSpeed Ulysses, arXiv 2309.14509): `by_heads` and `by_tokens` say
where one becomes the other, and XLA makes exchanges of them.

Shapes: b batch, l tokens, n heads, k head width.
"""

import math

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float


def platform() -> str:
    """Give the platform that is traced for: that of the mesh, which may be of chips that are not here."""
    return getattr(_device(), "platform", None) or jax.default_backend()


def device_kind() -> str:
    """Give JAX's name of the devices that are traced for, such as "TPU v5 lite"."""
    return getattr(_device(), "device_kind", None) or jax.devices()[0].device_kind


def batch_axes(size: int) -> tuple[str, ...]:
    """Give the mesh axes that split a batch of `size`; none outside of a mesh or if it does not divide."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in ("data", "fsdp") if axis in mesh.axis_names)
    return axes if size % math.prod(mesh.shape[axis] for axis in axes) == 0 else ()


def sequence_shards() -> int:
    """Give over how many devices the mesh splits the tokens of one sample; 1 outside of such a mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get("sequence", 1)


def by_heads(x: Float[Array, "b l n k"]) -> Float[Array, "b l n k"]:
    """Where tokens are split, give each device all tokens of some heads instead."""
    if sequence_shards() == 1:
        return x
    return jax.lax.with_sharding_constraint(x, P(batch_axes(len(x)) or None, None, head_axes(x.shape[2])))


def by_tokens(x: Float[Array, "b l n k"]) -> Float[Array, "b l n k"]:
    """Undo `by_heads`; heads stay split over "tensor"."""
    if sequence_shards() == 1:
        return x
    heads = tuple(axis for axis in head_axes(x.shape[2]) if axis != "sequence")
    return jax.lax.with_sharding_constraint(x, P(batch_axes(len(x)) or None, "sequence", heads or None))


def head_axes(num_heads: int) -> tuple[str, ...]:
    """Give the mesh axes that split the heads: those that fit, "tensor" first."""
    sizes, axes = dict(jax.sharding.get_abstract_mesh().shape), ()
    for axis in ("tensor", "sequence"):
        if num_heads % math.prod(sizes.get(name, 1) for name in (*axes, axis)) == 0 and axis in sizes:
            axes += (axis,)
    return axes


def _device():
    return getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
