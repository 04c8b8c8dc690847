# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Attention on TPU: JAX's splash kernel, sharded by samples and heads, with block sizes tuned per chip.

Shapes: b batch, l queries, s keys, n heads, k head width, w width of values.

Padding to whole blocks happens here, so linear layers do not compute it. Invalid keys and padding are in a different
segment than all queries. Splash has no bias, so `key_bias` is an extra channel: 1 in every query, the bias in the key.

A block of keys is computed in parts. The table has millions of instruction bundles scheduled by the compiler (libtpu
0.0.42) for one image of 5,824 tokens with 24 heads of 128 channels, by queries / keys per block, in parts of 512 keys.
Memory stalls are not included. For v5p the numbers are per core, of two; 1024 / 2048 of tpu7x includes the sums for the
backward pass.

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

Larger blocks need more on-chip memory and compile time. The fused backward kernel writes a gradient of all queries for
every block of keys, so blocks of keys are large.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from uso_jax.parallel.constraints import batch_axes, device_kind, head_axes

_LANES = 128
_QUERIES, _KEYS, _PART = 1024, 2048, 512  # maximum of a block, maximum of a block, target of a part
_FEW_QUERIES = {"TPU v5 lite"}  # chips whose forward pass also splits queries into parts


def splash_attention(
    q: Float[Array, "b l n k"],
    k: Float[Array, "b s n k"],
    v: Float[Array, "b s n w"],
    key_valid: Bool[Array, "b s"] | None = None,
    key_bias: Float[Array, "b s"] | None = None,
    *,
    scale: float | None = None,
    interpret: bool = False,
) -> Float[Array, "b l n w"]:
    """Compute attention like `dispatch.attention`; each device runs the kernel on its samples and heads.

    Args:
      q, k, v, key_valid, key_bias: see there.
      scale: of the products of queries and keys; None: by the width of heads.
      interpret: let Pallas interpret the kernel on any platform.
    """
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)  # the kernel does not scale
    if key_bias is not None:
        q = jnp.concatenate([q, jnp.ones_like(q[..., :1])], axis=-1)
        channel = jnp.broadcast_to(key_bias[:, :, None, None].astype(k.dtype), k[..., :1].shape)
        k = jnp.concatenate([k, channel], axis=-1)
    key_valid = jnp.ones(k.shape[:2], bool) if key_valid is None else key_valid
    local = functools.partial(_local, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(q, k, v, key_valid)
    # XLA cannot partition a Pallas kernel automatically.
    batch = batch_axes(q.shape[0]) or None
    spec = P(batch, None, head_axes(q.shape[2]) or None, None)
    sharded = jax.shard_map(local, in_specs=(spec, spec, spec, P(batch, None)), out_specs=spec, check_vma=False)
    return sharded(q, k, v, key_valid)


interpreted_splash = functools.partial(splash_attention, interpret=True)
"""The TPU kernel interpreted on any platform, to test its numerics without a TPU."""


def block_size(length: int, most: int) -> int:
    """Return the block size in tokens, a multiple of the lanes: fewest blocks of at most `most`, then least padding."""
    blocks = math.ceil(length / most)
    return math.ceil(length / blocks / _LANES) * _LANES


def part_size(tokens: int) -> int:
    """Return the part size in tokens: the divisor of the block in whole lanes whose ratio to 512 is closest to 1."""
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
    # All queries, including padding, are in segment 1, so each sees a valid key and no softmax is empty.
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
