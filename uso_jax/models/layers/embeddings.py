# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Timestep and rotary embeddings of FLUX.

Source: black-forest-labs/flux, modules/layers.py and math.py.
Shapes: b batch, l tokens, n heads, k head width, a rotary axes, pairs k / 2.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def timestep_embedding(t: Float[Array, " b"], dim: int = 256) -> Float[Array, "b {dim}"]:
    """Return the cosines, then the sines, of 1000 t at `dim // 2` frequencies, for times in [0, 1], in float32."""
    exponents = -math.log(10_000) * np.arange(dim // 2, dtype=np.float32) / (dim // 2)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    if dim == 256:
        # exp(exponents[12]) is 0.02 ulp from a tie, and torch rounds it the other way; times 1000 t this is 3e-5.
        frequencies[12] = np.nextafter(frequencies[12], np.float32(1))
    angles = (1000.0 * t.astype(jnp.float32))[:, None] * jnp.asarray(frequencies)[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def rotary_embedding(
    ids: Float[Array, "b l a"], axes_dim: tuple[int, ...], theta: int
) -> Float[Array, "b l 1 pairs 2"]:
    """Return cosine and sine of every token's rotation angles, one block of pairs per id axis, in float32."""
    angles = [
        ids[..., axis, None] * jnp.asarray(theta ** -(np.arange(0, dim, 2) / dim), jnp.float32)[None, None]
        for axis, dim in enumerate(axes_dim)
    ]
    angles = jnp.concatenate(angles, axis=-1)
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)[:, :, None]


def rotate(x: Float[Array, "b l n k"], pe: Float[Array, "_ l 1 pairs 2"]) -> Float[Array, "b l n k"]:
    """Rotate adjacent channel pairs of queries or keys by the token's angles, in float32."""
    even, odd = jnp.moveaxis(x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2), -1, 0)
    cos, sin = pe[..., 0], pe[..., 1]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape).astype(x.dtype)


def rotation_tables(
    pe: Float[Array, "_ l 1 pairs 2"],
) -> tuple[Float[Array, "_ l k"], Float[Array, "_ l k"]]:
    """Return the cosine and the signed sine of every channel: with adjacent channels swapped to x', x cos + x' sin."""
    cos, sin = pe[:, :, 0, :, 0], pe[:, :, 0, :, 1]
    channels = (*cos.shape[:2], 2 * cos.shape[2])
    return jnp.stack([cos, cos], axis=-1).reshape(channels), jnp.stack([-sin, sin], axis=-1).reshape(channels)
