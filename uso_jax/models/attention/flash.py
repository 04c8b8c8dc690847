# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Attention on TPU over heads-first arrays, as a kernel with keys on sublanes and queries on lanes.

FlashAttention (arXiv 2205.14135) with base-2 exponentials. The logits are transposed, so a sum over keys is one of
registers, not of lanes, and keys need no padding to whole lanes. All keys of a head are in on-chip memory, so a block
of queries meets them in parts without leaving the kernel, and the backward pass writes no partial sums.

The softmax subtracts no maximum, for which every weight would have to wait. Norms of queries and keys limit the
logits, so a constant shift does: a limit of up to 113 (in base 2) keeps all weights within float32's normal numbers,
and beyond, only weights of queries whose logits are all far below zero can vanish.

Queries come with the softmax's scale and log2(e) already in them. Shapes: b batch, t tokens, s keys, n heads, k width.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

QUERY_FACTOR = math.log2(math.e)
"""What queries are multiplied by, beside the softmax's scale."""

_LANES = 128
_QUERIES = 1024  # maximum of a block
_PART, _BACKWARD_PART = 1024, 512  # keys of a part
_MASKED = -1e30  # the logit of what is masked: finite, so that differences are
_LARGEST, _SMALLEST = 100.0, 2.0**-126  # exponent of the largest weight, whose sums are finite; a normal number
_MEMORY = 64 * 2**20  # bytes of on-chip memory that a kernel may use


def flash_attention(
    q: Float[Array, "b n t k"],
    k: Float[Array, "b n s k"],
    v: Float[Array, "b n s k"],
    limit: Float[Array, ""],
    mask: Float[Array, "b s 128"] | None = None,
    interpret: bool = False,
) -> Float[Array, "b t n*k"]:
    """Return the attention of every query to all keys, tokens first.

    Args:
      q: queries with QUERY_FACTOR and the softmax's scale.
      k: keys; s is a multiple of 16.
      v: values.
      limit: no product of a query and a key is larger; a constant of the gradient.
      mask: `key_mask`; None: every key is valid.
      interpret: let Pallas interpret the kernel on any platform.
    """
    shift = jax.lax.stop_gradient(jnp.maximum(limit - _LARGEST, 0.0)).reshape(1, 1)
    return _attend(q, k, v, shift, mask, interpret)


def key_mask(valid: Array) -> Float[Array, "b s 128"]:
    """Return what is added to the logits of keys, [b, s] of which are valid."""
    return jnp.broadcast_to(jnp.where(valid, 0.0, _MASKED)[:, :, None], (*valid.shape, _LANES))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q, k, v, shift, mask, interpret):
    return _forward(q, k, v, shift, mask, interpret)[0]


def _forward(q, k, v, shift, mask, interpret):
    b, heads, length, width = q.shape
    block = _query_block(length)
    tokens = pl.BlockSpec((None, block, width), lambda b, h, i: (b, i, h))
    rows = pl.BlockSpec((None, None, 1, block), lambda b, h, i: (b, h, 0, i))
    out, normalizer = pl.pallas_call(
        functools.partial(_forward_kernel, parts=_parts(k.shape[2], _PART)),
        grid=(b, heads, -(-length // block)),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), *_in_specs(q, k, mask, block)],
        out_specs=[tokens, rows],
        out_shape=[
            jax.ShapeDtypeStruct((b, length, heads * width), q.dtype),
            jax.ShapeDtypeStruct((b, heads, 1, length), jnp.float32),
        ],
        compiler_params=_compiler_params("parallel", "parallel", "parallel"),
        name="attention",
        interpret=interpret,
    )(shift, *_operands(q, k, v, mask))
    return out, (q, k, v, mask, out, normalizer)


def _backward(interpret, saved, gradient):
    q, k, v, mask, out, normalizer = saved
    b, heads, length, width = q.shape
    block, keys = _query_block(length), k.shape[2]
    tokens = pl.BlockSpec((None, block, width), lambda b, h, i: (b, i, h))
    rows = pl.BlockSpec((None, None, 1, block), lambda b, h, i: (b, h, 0, i))
    queries = pl.BlockSpec((None, None, block, width), lambda b, h, i: (b, h, i, 0))
    whole = pl.BlockSpec((None, None, keys, width), lambda b, h, i: (b, h, 0, 0))
    dq, dk, dv = pl.pallas_call(
        functools.partial(_backward_kernel, parts=_parts(keys, _BACKWARD_PART), length=length),
        grid=(b, heads, -(-length // block)),
        in_specs=[*_in_specs(q, k, mask, block), tokens, tokens, rows],
        out_specs=[queries, whole, whole],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)],
        scratch_shapes=[pltpu.VMEM((keys, width), jnp.float32)] * 2,
        compiler_params=_compiler_params("parallel", "parallel", "arbitrary"),
        name="attention_backward",
        interpret=interpret,
    )(*_operands(q, k, v, mask), out, gradient, normalizer)
    return dq, dk, dv, None, None


_attend.defvjp(_forward, _backward)


# ---------------------------------------------------------------------------------------------------- kernels


def _forward_kernel(shift_ref, q_ref, k_ref, v_ref, *refs, parts):
    *masks, out_ref, normalizer_ref = refs
    q, shift = q_ref[...], shift_ref[0, 0]
    block, width = q.shape
    total = jnp.zeros((1, block), jnp.float32)
    out = jnp.zeros((width, block), jnp.float32)
    for part in parts:
        weights = jnp.exp2(_logits(q, k_ref, masks, part) - shift)
        total += weights.sum(axis=0, keepdims=True)
        out += _dot(v_ref[part], weights.astype(v_ref.dtype), 0, 0)
    total = jnp.maximum(total, _SMALLEST)
    out_ref[...] = (out / total).T.astype(out_ref.dtype)
    normalizer_ref[...] = jnp.log2(total) + shift


def _backward_kernel(q_ref, k_ref, v_ref, *refs, parts, length):
    *masks, out_ref, gradient_ref, normalizer_ref, dq_ref, dk_ref, dv_ref, dk_sum, dv_sum = refs
    step, steps = pl.program_id(2), pl.num_programs(2)

    @pl.when(step == 0)
    def _():
        dk_sum[...], dv_sum[...] = jnp.zeros_like(dk_sum), jnp.zeros_like(dv_sum)

    q, gradient, out, normalizer = q_ref[...], gradient_ref[...], out_ref[...], normalizer_ref[...]
    block, width = q.shape
    if length % block:  # what lies behind the last query is undefined
        left = length - step * block
        rows = jax.lax.broadcasted_iota(jnp.int32, (block, 1), 0) < left
        q, gradient, out = (jnp.where(rows, x, jnp.zeros_like(x)) for x in (q, gradient, out))
        columns = jax.lax.broadcasted_iota(jnp.int32, (1, block), 1) < left
        normalizer = jnp.where(columns, normalizer, -_MASKED)
    delta = (gradient.astype(jnp.float32) * out.astype(jnp.float32)).T.sum(axis=0, keepdims=True)
    dq = jnp.zeros((width, block), jnp.float32)
    for part in parts:
        weights = jnp.exp2(_logits(q, k_ref, masks, part) - normalizer)
        dv_sum[part] += _dot(weights.astype(gradient.dtype), gradient, 1, 0)
        dlogits = (weights * (_dot(v_ref[part], gradient, 1, 1) - delta)).astype(q.dtype)
        dk_sum[part] += _dot(dlogits, q, 1, 0)
        dq += _dot(k_ref[part], dlogits, 0, 0)
    # The logits are in units of log2(e).
    dq_ref[...] = (dq.T * (1 / QUERY_FACTOR)).astype(dq_ref.dtype)

    @pl.when(step == steps - 1)
    def _():
        dk_ref[...] = (dk_sum[...] * (1 / QUERY_FACTOR)).astype(dk_ref.dtype)
        dv_ref[...] = dv_sum[...].astype(dv_ref.dtype)


def _logits(q, k_ref, masks, part) -> Float[Array, "keys queries"]:
    logits = _dot(k_ref[part], q, 1, 1)
    for mask_ref in masks:
        logits += jnp.tile(mask_ref[part], (1, q.shape[0] // _LANES))
    return logits


def _dot(x: Array, y: Array, of_x: int, of_y: int) -> Array:
    """Contract an axis of each in float32."""
    return jax.lax.dot_general(x, y, (((of_x,), (of_y,)), ((), ())), preferred_element_type=jnp.float32)


# ---------------------------------------------------------------------------------------------------- blocks


def _query_block(length: int) -> int:
    """Return the tokens of a block, a multiple of the lanes: fewest blocks, then least padding."""
    blocks = -(-length // _QUERIES)
    return -(-length // (blocks * _LANES)) * _LANES


def _parts(keys: int, most: int) -> list[slice]:
    return [slice(start, min(start + most, keys)) for start in range(0, keys, most)]


def _operands(*arrays: Array | None) -> list[Array]:
    return [array for array in arrays if array is not None]


def _in_specs(q: Array, k: Array, mask: Array | None, block: int) -> list[pl.BlockSpec]:
    keys, width = k.shape[2:]
    queries = pl.BlockSpec((None, None, block, width), lambda b, h, i: (b, h, i, 0))
    whole = pl.BlockSpec((None, None, keys, width), lambda b, h, i: (b, h, 0, 0))
    masked = pl.BlockSpec((None, keys, _LANES), lambda b, h, i: (b, 0, 0))
    return [queries, whole, whole] + [masked] * (mask is not None)


def _compiler_params(*semantics: str) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=_MEMORY)
