# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Image statistics that reveal a cheated reward: too saturated, too harsh, or painted in the style image's colours.

    saturation   (max - min) / max over a pixel's channels, the mean over pixels           0 grey ... 1
    contrast     standard deviation of luma (ITU-R BT.601) over pixels                     0 flat ... 0.5
    leakage      overlap of the image's colours with the style image's, minus that of the true target

Shapes: b batch, h w pixels, k colours of a histogram.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

BINS = 4  # per colour channel


def saturation(images: UInt8[Array, "b h w 3"]) -> Float[Array, " b"]:
    """Return each image's mean saturation."""
    x = images.astype(jnp.float32)
    top = x.max(axis=-1)
    return jnp.mean((top - x.min(axis=-1)) / jnp.maximum(top, 1), axis=(1, 2))


def contrast(images: UInt8[Array, "b h w 3"]) -> Float[Array, " b"]:
    """Return each image's standard deviation of luma."""
    luma = images.astype(jnp.float32) @ jnp.asarray([0.299, 0.587, 0.114]) / 255
    return jnp.std(luma, axis=(1, 2))


def colours(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b k"]:
    """Return each image's share of pixels in every cell of a colour cube of `BINS`^3 cells."""
    red, green, blue = jnp.moveaxis(images.astype(jnp.int32) * BINS // 256, -1, 0)
    cells = ((red * BINS + green) * BINS + blue).reshape(images.shape[0], -1)
    count = lambda row: jnp.zeros(BINS**3).at[row].add(1.0)
    return jax.vmap(count)(cells) / cells.shape[1]


def overlap(x: UInt8[Array, "b h w 3"], y: UInt8[Array, "b H W 3"]) -> Float[Array, " b"]:
    """Return the intersection of two images' colour histograms, 0 to 1."""
    return jnp.sum(jnp.minimum(colours(x), colours(y)), axis=-1)


def leakage(
    images: UInt8[Array, "b h w 3"], style: UInt8[Array, "b H W 3"], target: UInt8[Array, "b h w 3"]
) -> Float[Array, " b"]:
    """Return how much more of the style image's colours an image has than its target has; negative: less."""
    return overlap(images, style) - overlap(target, style)
