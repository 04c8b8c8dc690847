# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Decoding and encoding in overlapping tiles, one at a time, so that peak memory depends only on the tile size.

The autoencoder normalises over the whole image, so the colours of a tile differ slightly from those of the whole image.
Linear blending in the overlaps hides this.

Shapes: b batch, h w latent grid, z latent channels, H W pixels, c channels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def tile_starts(length: int, tile: int, overlap: int, cell: int = 1) -> list[int]:
    """Return evenly spaced start positions of tiles that cover `length`, with neighbours overlapping by `overlap`.

    All are multiples of `cell`; lengths are too, and an overlap is rounded down to one.
    """
    length, tile, overlap = (size // cell for size in (length, tile, overlap))
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [cell * round(i * (length - tile) / (count - 1)) for i in range(count)]


def decode_tiled(
    decode: Callable[[Float[Array, "b h w z"]], Float[Array, "b H W c"]],
    z: Float[Array, "b h w z"],
    tile: int,
    cell: int = 1,
) -> Float[Array, "b H W c"]:
    """Decode latents in tiles that overlap by a quarter.

    Args:
      decode: decodes latents of any size.
      z: latents.
      tile: side of a tile in latents; smaller latents are decoded at once.
      cell: latents a side of the patches that the autoencoder treats alike; tiles begin where one does.
    """
    height, width = z.shape[1:3]
    if max(height, width) <= tile:
        return decode(z)
    return _by_tiles(decode, z, tile, cell)


def encode_tiled(
    encode: Callable[[Float[Array, "b H W c"]], Float[Array, "b h w z"]],
    pixels: Float[Array, "b H W c"],
    tile: int,
    cell: int,
) -> Float[Array, "b h w z"]:
    """Encode an image in tiles that overlap by a quarter; the counterpart of `decode_tiled`.

    Args:
      encode: encodes pixels of any size.
      pixels: the image, larger than a tile.
      tile: side of a tile in pixels.
      cell: pixels of a side that become one latent, or one patch of latents; sizes are multiples of it.
    """
    return _by_tiles(encode, pixels, tile, cell)


def _by_tiles(function: Callable[[Array], Array], x: Array, tile: int, cell: int) -> Array:
    height, width = x.shape[1:3]
    size = min(height, tile), min(width, tile)
    starts = lambda length: tile_starts(length, tile, tile // 4, cell)
    corners = np.asarray([(row, column) for row in starts(height) for column in starts(width)])
    cut = lambda corner: jax.lax.dynamic_slice(x, (0, *corner, 0), (x.shape[0], *size, x.shape[3]))
    tiles = jax.lax.map(lambda corner: function(cut(corner)), jnp.asarray(corners))
    scaled = lambda length: length * tiles.shape[2] // size[0]
    ramps = [ramp(scaled(side), scaled(tile // 4)) for side in size]
    weight = ramps[0][:, None] * ramps[1][None]
    total = np.zeros((scaled(height), scaled(width)), np.float32)
    whole = jnp.zeros((x.shape[0], *total.shape, tiles.shape[-1]))
    for (row, column), one in zip(corners, tiles, strict=True):
        top, left = scaled(row), scaled(column)
        area = np.s_[top : top + weight.shape[0], left : left + weight.shape[1]]
        total[area] += weight
        whole = whole.at[:, *area].add(one * weight[None, ..., None])
    return whole / total[None, ..., None]


def ramp(length: int, overlap: int) -> np.ndarray:
    """Return blending weights: a linear ramp at both ends, never zero because borders have no neighbour."""
    rise = np.minimum((np.arange(length) + 1) / (overlap + 1), 1)
    return np.minimum(rise, rise[::-1]).astype(np.float32)
