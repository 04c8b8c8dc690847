# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Attention on TPU: JAX's splash kernel, by samples and heads over the mesh, in blocks chosen for the chip.

Shapes: b batch, l queries, s keys, n heads, k head width.

Padding to blocks happens here, so no linear layer pays for it. Absent keys, padding among them, are of another segment
than every query. Splash knows no bias, so `key_bias` is one more channel: 1 in every query, the bias in the key.

A block of keys is computed in parts. Millions of instruction bundles that the compiler schedules for one image of 5,824
tokens in 24 heads of 128, by queries / keys of a block, in parts of 512 keys; of v5p each of its two cores', of tpu7x
1024 / 2048 with the sums that the backward pass needs (libtpu 0.0.42). Waiting for memory is not in them.

    forward         512 / 512   1024 / 1024   512 / 2048   1024 / 2048   512 / 3072   1024 / 3072
    v5e             4.98        4.31          4.03         4.18
    v5p             2.79        2.25          2.22         2.15
    v6e             4.13        3.03          3.05         2.85          3.00         2.75
    tpu7x           4.19        3.17          3.08         2.95
    backward
    v5e                                       9.76         8.70
    v5p                                       9.71         8.75
    v6e                         5.63          5.79         5.39          5.64
    tpu7x                                     5.41         5.08

Larger blocks cost memory on the chip and time to compile. The fused backward kernel writes a gradient of all queries
for every block of keys, so these are few.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from uso_jax.parallel.constraints import batch_axes, device_kind, head_axes

_LANES = 128
_QUERIES, _KEYS, _PART = 1024, 2048, 512  # of a block, at most; of a part, about
_FEW_QUERIES = {"TPU v5 lite"}  # chips on which the forward pass takes the queries in parts, too


def splash_attention(
    q: Float[Array, "b l n k"],
    k: Float[Array, "b s n k"],
    v: Float[Array, "b s n k"],
    key_valid: Bool[Array, "b s"] | None = None,
    key_bias: Float[Array, "b s"] | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "b l n k"]:
    """Attend from every query to the valid keys; each device runs the kernel on its own samples and heads."""
    q = q * q.shape[-1] ** -0.5  # the kernel does not scale
    if key_bias is not None:
        q = jnp.concatenate([q, jnp.ones_like(q[..., :1])], axis=-1)
        channel = jnp.broadcast_to(key_bias[:, :, None, None].astype(k.dtype), k[..., :1].shape)
        k = jnp.concatenate([k, channel], axis=-1)
    key_valid = jnp.ones(k.shape[:2], bool) if key_valid is None else key_valid
    local = functools.partial(_local, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(q, k, v, key_valid)
    # XLA cannot split a kernel by itself.
    batch = batch_axes(q.shape[0]) or None
    spec = P(batch, None, head_axes(q.shape[2]) or None, None)
    sharded = jax.shard_map(local, in_specs=(spec, spec, spec, P(batch, None)), out_specs=spec, check_vma=False)
    return sharded(q, k, v, key_valid)


interpreted_splash = functools.partial(splash_attention, interpret=True)
"""The TPU kernel run step by step on any backend: how its numerics are tested without a TPU."""


def block_size(length: int, most: int) -> int:
    """Give the tokens of a block, whole lanes, so that the fewest blocks of at most `most` pad the least."""
    blocks = math.ceil(length / most)
    return math.ceil(length / blocks / _LANES) * _LANES


def part_size(tokens: int) -> int:
    """Give the tokens of a part of a block: of those that divide it into whole lanes, the nearest to 512 by ratio."""
    parts = (size for size in range(_LANES, tokens + 1, _LANES) if tokens % size == 0)
    return min(parts, key=lambda size: abs(math.log(size / _PART)))


def _local(q, k, v, key_valid, *, interpret: bool):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    b, num_queries, heads, _ = q.shape
    num_keys, width = k.shape[1], v.shape[-1]
    queries, keys = block_size(num_queries, _QUERIES), block_size(num_keys, _KEYS)
    pad_q, pad_k = -num_queries % queries, -num_keys % keys

    def heads_first(x, pad):
        return jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, -x.shape[-1] % _LANES))).swapaxes(1, 2)

    q = heads_first(q, pad_q)
    k, v = heads_first(k, pad_k), heads_first(v, pad_k)
    # Every query, padded or not, belongs to segment 1, so each one sees a valid key and no softmax is empty.
    segments = kernels.SegmentIds(
        q=jnp.ones((b, num_queries + pad_q), jnp.int32),
        kv=jnp.pad(key_valid.astype(jnp.int32), ((0, 0), (0, pad_k))),
    )
    kernel = kernels.make_splash_mha(
        mask=masks.MultiHeadMask([masks.FullMask((num_queries + pad_q, num_keys + pad_k))] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=kernels.BlockSizes(
            block_q=part_size(queries) if device_kind() in _FEW_QUERIES else queries,
            block_kv=keys,
            block_kv_compute=part_size(keys),
            block_q_dkv=queries,
            block_kv_dkv=keys,
            block_kv_dkv_compute=part_size(keys),
            use_fused_bwd_kernel=True,
        ),
        interpret=interpret,
    )
    out = jax.vmap(kernel)(q, k, v, segments)
    return out.swapaxes(1, 2)[:, :num_queries, :, :width]
