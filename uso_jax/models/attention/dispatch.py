# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Attention with a kernel for each platform.

Shapes: b batch, l queries, s keys, n heads, k head width.

Keys of absent conditions have `key_valid` False. No kernel receives an l x s mask: XLA gets a row [b, 1, 1, s], splash
gets segment ids, and cuDNN, which only supports a valid length, gets the keys sorted with the valid ones first
(attention does not depend on the order of keys).

`key_bias` multiplies a key's weight in the softmax by exp(`key_bias`). XLA gets a row. Splash has no bias, so it gets
an extra channel: 1 in every query, the bias in the key. A `PairBias` depends on the query too; its factors are extra
channels of queries and keys for every kernel. cuDNN supports neither more than 128 channels nor a bias with one row, so
XLA replaces it.

On CPU, attention over many keys is blockwise (uso_jax.models.attention.cpu). Milliseconds on one AVX-512 core in
float32, forward / forward and backward, 4 heads of 128 channels:

    tokens      48            256           512           1024
    xla         0.12 / 0.26   1.84 / 5.40   9.36 / 22.5   45.8 / 121
    blockwise   0.11 / 0.36   1.73 / 5.68   6.25 / 21.4   24.4 / 82.4

For encoders: 32 images with 8 heads of 64 channels, 16 with 16 of 64, 2 with 16 of 72:

    tokens      64            128           257           729
    xla         8.9 / 22.2    27.4 / 79.3   128 / 350     110 / 343
    blockwise   7.3 / 22.8    20.2 / 64.5   71.4 / 226    63.8 / 206
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from uso_jax.models.attention.cpu import blockwise_attention
from uso_jax.models.attention.tpu import splash_attention
from uso_jax.parallel.constraints import device_kind, platform

Implementation = Literal["auto", "xla", "blockwise", "cudnn", "splash", "fused"]
_LANES = 128
_SMALL_MEMORY = {"TPU v4"}  # chips whose on-chip memory does not hold all keys of a head
_MANY_KEYS = 128  # number of keys from which blockwise attention is faster on CPU


class PairBias(NamedTuple):
    """A bias of the logit of every pair of a query and a key: the sum over c of their products."""

    queries: Float[Array, "b l c"]
    keys: Float[Array, "b s c"]


def attention(
    q: Float[Array, "b l n k"],
    k: Float[Array, "b s n k"],
    v: Float[Array, "b s n k"],
    key_valid: Bool[Array, "b s"] | None = None,
    key_bias: Float[Array, "b s"] | None = None,
    pair_bias: PairBias | None = None,
    *,
    order: Int[Array, "b s"] | None = None,
    implementation: Implementation = "auto",
) -> Float[Array, "b l n k"]:
    """Compute scaled dot-product attention over the valid keys, with a float32 softmax.

    Args:
      q: queries.
      k: keys.
      v: values.
      key_valid: False masks a key; every sample needs at least one valid key.
      key_bias: added to the logits of a key.
      pair_bias: added to the logits of a query and a key; its numbers must be finite.
      order: `key_order`, where many layers share it.
      implementation: "auto" chooses by platform: splash on TPU, cuDNN on GPU, blockwise or XLA on CPU. So does "fused",
        for what `fuses` refuses.
    """
    if implementation in ("auto", "fused"):
        implementation = {"tpu": "splash", "gpu": "cudnn", "cpu": on_cpu(q, k)}.get(platform(), "xla")
        if implementation == "cudnn" and q.dtype not in (jnp.bfloat16, jnp.float16):
            implementation = "xla"  # cuDNN's fused kernel does not support float32
    if implementation == "cudnn" and (key_bias is not None or pair_bias is not None):
        implementation = "xla"
    scale = q.shape[-1] ** -0.5
    if pair_bias is not None:
        q, k = _with_channels(q, pair_bias.queries / scale), _with_channels(k, pair_bias.keys)
    if implementation == "splash":
        return splash_attention(q, k, v, key_valid, key_bias, scale=scale)
    if implementation == "cudnn":
        lengths = {}
        if key_valid is not None:
            order = key_order(key_valid, "cudnn") if order is None else order
            k, v = (jnp.take_along_axis(x, order[:, :, None, None], axis=1) for x in (k, v))
            b, num_queries = q.shape[:2]
            lengths = {
                "query_seq_lengths": jnp.full((b,), num_queries, jnp.int32),
                "key_value_seq_lengths": key_valid.sum(axis=1, dtype=jnp.int32),
            }
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn", **lengths)
    if implementation == "blockwise":
        if key_valid is not None:
            key_bias = jnp.where(key_valid, 0.0 if key_bias is None else key_bias, -jnp.inf)
        return blockwise_attention(q, k, v, key_bias, scale=scale)
    mask = None if key_valid is None else key_valid[:, None, None, :]
    bias = None if key_bias is None else key_bias[:, None, None, :].astype(jnp.float32)
    options = dict(bias=bias, mask=mask, scale=scale, implementation="xla")
    if (more := q.shape[-1] - v.shape[-1]) == 0:
        return jax.nn.dot_product_attention(q, k, v, **options)
    padded = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, more)))  # this function takes one width for all
    return jax.nn.dot_product_attention(q, k, padded, **options)[..., : v.shape[-1]]


def _with_channels(x: Float[Array, "b l n k"], more: Float[Array, "b l c"]) -> Float[Array, "b l n _"]:
    """Append the same channels to every head."""
    more = jnp.broadcast_to(more[:, :, None].astype(x.dtype), (*x.shape[:3], more.shape[-1]))
    return jnp.concatenate([x, more], axis=-1)


def key_order(key_valid: Bool[Array, "b s"] | None, implementation: Implementation) -> Int[Array, "b s"] | None:
    """Return the keys with the valid ones first, as cuDNN needs them; None for other kernels and if all are valid."""
    if key_valid is None or not (implementation == "cudnn" or (implementation == "auto" and platform() == "gpu")):
        return None
    return jnp.argsort(~key_valid, axis=1, stable=True)


def fuses(implementation: Implementation, width: int, *biases: Array | PairBias | None) -> bool:
    """Return whether joint attention runs from projected tokens to merged heads (`attention.fused`), without a bias.

    "auto" does so on TPU. "fused" does so everywhere; other platforms interpret the kernels, for tests.
    """
    on_tpu = platform() == "tpu"
    if any(bias is not None for bias in biases) or (on_tpu and width % _LANES):
        return False
    return implementation == "fused" or (implementation == "auto" and on_tpu and device_kind() not in _SMALL_MEMORY)


def on_cpu(q: Array, k: Array) -> Implementation:
    """Return the faster CPU implementation. Blockwise attention loops over heads, so it needs a single device."""
    blocks = q.dtype == jnp.float32 and k.shape[1] >= _MANY_KEYS and jax.sharding.get_abstract_mesh().size <= 1
    return "blockwise" if blocks else "xla"
