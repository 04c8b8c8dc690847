# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Blockwise attention for CPUs, which never materialises all l x s weights, forward or backward.

As in FlashAttention (arXiv 2205.14135), the log-sum-exp of the logits is saved and the weights are recomputed in the
backward pass. A block is some queries with all keys in the forward pass, and some keys with all queries in the backward
pass, so no softmax is split. Heads are processed one after another to keep a block in cache. No product has a
transposed operand of the size of the weights, which would be a third slower in XLA on CPU.

Shapes: b batch, l queries, s keys, n heads, k head width, w width of values, h samples times heads, m tokens of a
block.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_BLOCK = 256


def blockwise_attention(
    q: Float[Array, "b l n k"],
    k: Float[Array, "b s n k"],
    v: Float[Array, "b s n w"],
    bias: Float[Array, "b s"] | None = None,
    *,
    scale: float,
) -> Float[Array, "b l n w"]:
    """Compute attention in float32; `bias` is added to the scaled logits of a key, -inf masks it."""
    b, _, heads, _ = q.shape
    first = lambda x: x.astype(jnp.float32).swapaxes(1, 2).reshape(b * heads, -1, x.shape[-1])
    rows = None if bias is None else jnp.repeat(bias.astype(jnp.float32), heads, axis=0)
    out = _attend(first(q * scale), first(k), first(v), rows)
    return out.reshape(b, heads, -1, v.shape[-1]).swapaxes(1, 2).astype(q.dtype)


@jax.custom_vjp
def _attend(
    q: Float[Array, "h l k"], k: Float[Array, "h s k"], v: Float[Array, "h s w"], bias: Float[Array, "h s"] | None
) -> Float[Array, "h l w"]:
    return _forward(q, k, v, bias)[0]


def _forward(q, k, v, bias):
    out, normalizer = jax.lax.map(_forward_head, (q, k, v, bias))
    return out, (q, k, v, bias, out, normalizer)


def _forward_head(arguments):
    q, k, v, bias = arguments
    k_transposed = k.T

    def block(q):
        logits = q @ k_transposed
        if bias is not None:
            logits += bias[None]
        largest = logits.max(axis=-1)
        weights = jnp.exp(logits - largest[:, None])
        total = weights.sum(axis=-1)
        return (weights @ v) / total[:, None], largest + jnp.log(total)

    return tuple(_uncut(x, len(q)) for x in jax.lax.map(block, _cut(q)))


def _backward(saved, gradient):
    *gradients, dbias = jax.lax.map(_backward_head, (*saved, gradient))
    return *gradients, None if saved[3] is None else dbias


def _backward_head(arguments):
    q, k, v, bias, out, normalizer, gradient = arguments
    delta = (out * gradient).sum(axis=-1)
    q_transposed, gradient_transposed = q.T, gradient.T

    def block(dq_transposed, keys):
        k, v, bias = keys
        weights = jnp.exp(k @ q_transposed + (bias[:, None] - normalizer[None]))
        dlogits = weights * (v @ gradient_transposed - delta[None])
        return dq_transposed + k.T @ dlogits, (dlogits @ q, weights @ gradient, dlogits.sum(axis=-1))

    rows = jnp.zeros(len(k)) if bias is None else bias
    dq, gradients = jax.lax.scan(block, jnp.zeros_like(q_transposed), (_cut(k), _cut(v), _cut(rows, -jnp.inf)))
    return dq.T, *(_uncut(x, len(k)) for x in gradients)


_attend.defvjp(_forward, _backward)


def _cut(x: Float[Array, "l ..."], filling: float = 0.0) -> Float[Array, "blocks m ..."]:
    """Split tokens into equal blocks, padded at the end with `filling`."""
    num = -(-len(x) // _BLOCK)
    size = -(-len(x) // num)
    pad = [(0, num * size - len(x))] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, pad, constant_values=filling).reshape(num, size, *x.shape[1:])


def _uncut(x: Float[Array, "blocks m ..."], length: int) -> Float[Array, "l ..."]:
    """Invert `_cut`."""
    return x.reshape(-1, *x.shape[2:])[:length]
