# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Overlapping tiles of one large image, drawn as a batch of images of the size that the weights are trained for.

After every step the tiles are blended where they overlap, so that they draw one image (MultiDiffusion, arXiv
2302.08113, Eq. 5: an Euler step is linear in the velocity, so blended steps are steps of the blended velocity).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from uso_jax.models.tiled_decoding import ramp, tile_starts

_OVERLAP = 4  # a tile overlaps its neighbour by its side divided by this


@dataclass(frozen=True, eq=False)
class Tiling:
    """Where the tokens of each tile lie in the image.

    Attributes:
      index: number of each token in the image, row by row.
      weight: of each token in the blend; the weights of a token of the image add up to 1.
      num_tokens: of the image.
    """

    index: Int[np.ndarray, "t l"]
    weight: Float[np.ndarray, "t l 1"]
    num_tokens: int

    @classmethod
    def of(cls, image: tuple[int, int], tile: tuple[int, int], multiple: int = 1) -> "Tiling":
        """Cover an image by tiles; sizes are (rows, columns) of tokens.

        Args:
          image: size of the image, at least that of a tile.
          tile: size of a tile.
          multiple: of which the number of tiles is one; the last tile is repeated without weight.
        """
        starts = [tile_starts(whole, part, part // _OVERLAP) for whole, part in zip(image, tile, strict=True)]
        numbers = np.arange(image[0] * image[1]).reshape(image)
        corners = [(row, column) for row in starts[0] for column in starts[1]]
        index = [numbers[row : row + tile[0], column : column + tile[1]].reshape(-1) for row, column in corners]
        rows, columns = (ramp(part, part // _OVERLAP) for part in tile)
        weight = np.stack([np.outer(rows, columns).reshape(-1)] * len(corners))
        extra = -len(corners) % multiple
        index = np.stack([*index, *[index[-1]] * extra])
        weight = np.concatenate([weight, np.zeros((extra, weight.shape[1]), weight.dtype)])
        total = np.zeros(numbers.size, np.float32)
        np.add.at(total, index, weight)
        return cls(index, (weight / total[index])[..., None], numbers.size)

    def cut(self, x: Float[Array, "1 n d"]) -> Float[Array, "t l d"]:
        """Return the tokens of the tiles."""
        return _cut(x, self.index)

    def join(self, tiles: Float[Array, "t l d"]) -> Float[Array, "1 n d"]:
        """Blend tiles to the tokens of the image."""
        return _join(tiles, self.index, self.weight, jnp.zeros((self.num_tokens, tiles.shape[-1]), tiles.dtype))


@jax.jit
def _cut(x: Array, index: Array) -> Array:
    return x[0][index]


@jax.jit
def _join(tiles: Array, index: Array, weight: Array, zeros: Array) -> Array:
    return zeros.at[index].add(weight * tiles)[None]
