# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Softmax attention written out, and inputs for it."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def plain(q, k, v, key_valid=None, bias=None):
    """Attend; `bias`, [b, l, s], is added to the logits of all heads."""
    weights = jnp.einsum("blnk,bsnk->bnls", q, k) / math.sqrt(q.shape[-1])
    if bias is not None:
        weights += bias[:, None]
    if key_valid is not None:
        weights = jnp.where(key_valid[:, None, None, :], weights, -jnp.inf)
    return jnp.einsum("bnls,bsnk->blnk", jax.nn.softmax(weights, axis=-1), v)


def inputs(queries: int, keys: int, heads: int = 2, width: int = 16):
    """Draw queries, keys and values, and validity with one full row, one with holes, and one with a single key."""
    rng = np.random.default_rng(queries + keys)
    draw = lambda length: jnp.asarray(rng.standard_normal((3, length, heads, width)), jnp.float32)
    valid = np.stack([np.ones(keys, bool), rng.random(keys) < 0.5, np.arange(keys) == keys - 1])
    return draw(queries), draw(keys), draw(keys), jnp.asarray(valid)
