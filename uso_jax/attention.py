# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One attention function and the kernels behind it.

Shapes: b batch, l queries, s keys, n heads, k head width.

Absent conditions are key positions with `key_valid` False. No kernel here ever sees an l x s mask: XLA gets a row
[b, 1, 1, s], splash gets segment ids, and cuDNN, which only knows a valid length, gets the keys sorted with the valid
ones first (attention does not care about the order of keys).

A key's weight in the softmax is multiplied by exp(`key_bias`). XLA gets a row again, and splash, which knows no bias,
one more channel: 1 in every query, the bias in the key. cuDNN has neither room for a channel beyond 128 nor a bias of
one row, so XLA stands in for it.

On CPU, attention over many keys goes block by block (uso_jax.blockwise_attention). Milliseconds of one core with
AVX-512 in float32, forward / forward and backward, 4 heads of 128 channels:

    tokens      48            256           512           1024
    xla         0.12 / 0.26   1.84 / 5.40   9.36 / 22.5   45.8 / 121
    blockwise   0.11 / 0.36   1.73 / 5.68   6.25 / 21.4   24.4 / 82.4

and, of encoders, 32 pictures in 8 heads of 64, 16 in 16 of 64, 2 in 16 of 72:

    tokens      64            128           257           729
    xla         8.9 / 22.2    27.4 / 79.3   128 / 350     110 / 343
    blockwise   7.3 / 22.8    20.2 / 64.5   71.4 / 226    63.8 / 206

Where the mesh has a "sequence" axis, each device keeps its share of the tokens for everything but attention, and for
attention all tokens of its share of the heads (DeepSpeed Ulysses, arXiv 2309.14509): `by_heads` and `by_tokens` say
where one becomes the other, and XLA makes exchanges of them.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from uso_jax.blockwise_attention import blockwise_attention

Implementation = Literal["auto", "xla", "blockwise", "cudnn", "splash"]
_SPLASH_BLOCK, _LANES = 512, 128
_MANY_KEYS = 128  # from where on blocks are faster on CPU


def attention(
    q: Float[Array, "b l n k"],
    k: Float[Array, "b s n k"],
    v: Float[Array, "b s n k"],
    key_valid: Bool[Array, "b s"] | None = None,
    key_bias: Float[Array, "b s"] | None = None,
    *,
    implementation: Implementation = "auto",
) -> Float[Array, "b l n k"]:
    """Attend from every query to the valid keys, softmax in float32; every sample needs at least one valid key."""
    if implementation == "auto":
        implementation = {"tpu": "splash", "gpu": "cudnn", "cpu": on_cpu(q, k)}.get(jax.default_backend(), "xla")
        if implementation == "cudnn" and q.dtype not in (jnp.bfloat16, jnp.float16):
            implementation = "xla"  # cuDNN's fused kernel has no float32
    if implementation == "cudnn" and key_bias is not None:
        implementation = "xla"
    if implementation == "splash":
        return _splash(q, k, v, key_valid, key_bias)
    if implementation == "cudnn":
        lengths = {}
        if key_valid is not None:
            order = jnp.argsort(~key_valid, axis=1, stable=True)[:, :, None, None]
            k, v = (jnp.take_along_axis(x, order, axis=1) for x in (k, v))
            b, num_queries = q.shape[:2]
            lengths = {
                "query_seq_lengths": jnp.full((b,), num_queries, jnp.int32),
                "key_value_seq_lengths": key_valid.sum(axis=1, dtype=jnp.int32),
            }
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn", **lengths)
    if implementation == "blockwise":
        if key_valid is not None:
            key_bias = jnp.where(key_valid, 0.0 if key_bias is None else key_bias, -jnp.inf)
        return blockwise_attention(q, k, v, key_bias)
    mask = None if key_valid is None else key_valid[:, None, None, :]
    bias = None if key_bias is None else key_bias[:, None, None, :].astype(jnp.float32)
    return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, implementation="xla")


def platform() -> str:
    """Give the platform that is traced for: that of the mesh, which may be of chips that are not here."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return getattr(device, "platform", None) or jax.default_backend()


def on_cpu(q: Array, k: Array) -> Implementation:
    """Choose for CPUs; heads that follow one another cannot lie on several devices."""
    blocks = q.dtype == jnp.float32 and k.shape[1] >= _MANY_KEYS and jax.sharding.get_abstract_mesh().size <= 1
    return "blockwise" if blocks else "xla"


def batch_axes(size: int) -> tuple[str, ...]:
    """Give the mesh axes that split a batch of `size`; none outside of a mesh or if it does not divide."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in ("data", "fsdp") if axis in mesh.axis_names)
    return axes if size % math.prod(mesh.shape[axis] for axis in axes) == 0 else ()


def sequence_ways() -> int:
    """Give over how many devices the mesh splits the tokens of one sample; 1 outside of such a mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get("sequence", 1)


def by_heads(x: Float[Array, "b l n k"]) -> Float[Array, "b l n k"]:
    """Where tokens are split, give each device all tokens of some heads instead."""
    if sequence_ways() == 1:
        return x
    return jax.lax.with_sharding_constraint(x, P(batch_axes(len(x)) or None, None, _head_axes(x.shape[2])))


def by_tokens(x: Float[Array, "b l n k"]) -> Float[Array, "b l n k"]:
    """Undo `by_heads`; heads stay split over "tensor"."""
    if sequence_ways() == 1:
        return x
    heads = tuple(axis for axis in _head_axes(x.shape[2]) if axis != "sequence")
    return jax.lax.with_sharding_constraint(x, P(batch_axes(len(x)) or None, "sequence", heads or None))


def _head_axes(num_heads: int) -> tuple[str, ...]:
    """Give the mesh axes that split the heads: those that fit, "tensor" first."""
    sizes, axes = dict(jax.sharding.get_abstract_mesh().shape), ()
    for axis in ("tensor", "sequence"):
        if num_heads % math.prod(sizes.get(name, 1) for name in (*axes, axis)) == 0 and axis in sizes:
            axes += (axis,)
    return axes


def _splash(q, k, v, key_valid, key_bias=None, *, interpret: bool = False):
    """TPU flash attention: each device runs the kernel on its own samples and heads."""
    q = q * q.shape[-1] ** -0.5  # the kernel does not scale
    if key_bias is not None:
        q = jnp.concatenate([q, jnp.ones_like(q[..., :1])], axis=-1)
        channel = jnp.broadcast_to(key_bias[:, :, None, None].astype(k.dtype), k[..., :1].shape)
        k = jnp.concatenate([k, channel], axis=-1)
    key_valid = jnp.ones(k.shape[:2], bool) if key_valid is None else key_valid
    local = functools.partial(_local_splash, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(q, k, v, key_valid)
    # XLA cannot split a kernel by itself.
    batch = batch_axes(q.shape[0]) or None
    spec = P(batch, None, _head_axes(q.shape[2]) or None, None)
    sharded = jax.shard_map(local, in_specs=(spec, spec, spec, P(batch, None)), out_specs=spec, check_vma=False)
    return sharded(q, k, v, key_valid)


def _local_splash(q, k, v, key_valid, *, interpret: bool):
    """Pad lengths to whole blocks and heads to whole lanes, here, so that no linear layer ever pays for padding."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    b, num_queries, heads, _ = q.shape
    num_keys, width = k.shape[1], v.shape[-1]
    block = min(_SPLASH_BLOCK, -(-max(num_queries, num_keys) // _LANES) * _LANES)
    pad_q, pad_k = -num_queries % block, -num_keys % block

    def heads_first(x, pad):
        return jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, -x.shape[-1] % _LANES))).swapaxes(1, 2)

    q = heads_first(q, pad_q)
    k, v = heads_first(k, pad_k), heads_first(v, pad_k)
    # Every query, padded or not, belongs to segment 1, so each one sees a valid key and no softmax is empty.
    segments = kernels.SegmentIds(
        q=jnp.ones((b, num_queries + pad_q), jnp.int32),
        kv=jnp.pad(key_valid.astype(jnp.int32), ((0, 0), (0, pad_k))),
    )
    mask = masks.MultiHeadMask([masks.FullMask((num_queries + pad_q, num_keys + pad_k))] * heads)
    sizes = dict.fromkeys(
        ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute"), block
    )
    # The backward pass writes a gradient of all queries for each of these blocks of keys, so they are few.
    sizes["block_kv_dkv"] = next(n * block for n in (4, 3, 2, 1) if (num_keys + pad_k) % (n * block) == 0)
    kernel = kernels.make_splash_mha(
        mask=mask,
        head_shards=1,
        q_seq_shards=1,
        block_sizes=kernels.BlockSizes(**sizes, use_fused_bwd_kernel=True),
        interpret=interpret,
    )
    out = jax.vmap(kernel)(q, k, v, segments)
    return out.swapaxes(1, 2)[:, :num_queries, :, :width]


interpreted_splash = functools.partial(_splash, interpret=True)
"""The TPU kernel run step by step on any backend: how its numerics are tested without a TPU."""
