# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""FLUX.2's autoencoder: FLUX.1's convolutions, two 1 x 1 convolutions, and latents normalised by a batch norm.

Source: black-forest-labs/flux2, autoencoder.py. The batch norm has no learned parameters, only running statistics of
every channel of a token, that is of each latent channel at each place of a patch; they are parameters here.
Shapes: b batch, H W pixels, h w latent grid, z latent channels, c channels of an image.
"""

from dataclasses import dataclass
from typing import ClassVar

import einops
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from uso_jax.models.autoencoder import AutoEncoder, AutoEncoderConfig

_EPSILON = 1e-4  # of the batch norm


@dataclass(frozen=True)
class AutoEncoder2Config(AutoEncoderConfig):
    """Sizes; the defaults are FLUX.2's ae.safetensors. Latents are normalised instead of scaled."""

    cell: ClassVar[int] = 2
    scale_factor: ClassVar[float] = 1.0
    shift_factor: ClassVar[float] = 0.0

    z_channels: int = 32  # channels of a latent


class BatchNorm(nnx.Module):
    """Running statistics of the channels of tokens, which are patches of `cell` x `cell` latents."""

    def __init__(self, config: AutoEncoder2Config, *, rngs: nnx.Rngs):
        self.cell = config.cell
        self.mean = nnx.Param(jnp.zeros(config.z_channels * config.cell**2))
        self.var = nnx.Param(jnp.ones(config.z_channels * config.cell**2))

    def normalise(self, mean: Float[Array, "b h w z"]) -> Float[Array, "b h w z"]:
        """Subtract the mean and divide by the deviation."""
        return self._by_cells(mean, lambda x: (x - self._grid(self.mean)) / self._deviation())

    def restore(self, z: Float[Array, "b h w z"]) -> Float[Array, "b h w z"]:
        """Invert `normalise`."""
        return self._by_cells(z, lambda x: x * self._deviation() + self._grid(self.mean))

    def normalise_logvar(self, logvar: Float[Array, "b h w z"]) -> Float[Array, "b h w z"]:
        """Return the log-variance of normalised latents."""
        return self._by_cells(logvar, lambda x: x - 2 * jnp.log(self._deviation()))

    def _deviation(self) -> Array:
        return jnp.sqrt(self._grid(self.var) + _EPSILON)

    def _grid(self, statistic: nnx.Param) -> Array:
        """Return a statistic as [1, 1, 1, p, q, z]: of each latent of a patch."""
        cells = einops.rearrange(statistic[...], "(z p q) -> p q z", p=self.cell, q=self.cell)
        return cells.astype(jnp.float32)[None, None, None]

    def _by_cells(self, x: Array, change) -> Array:
        cells = einops.rearrange(x, "b (h p) (w q) z -> b h w p q z", p=self.cell, q=self.cell)
        return einops.rearrange(change(cells), "b h w p q z -> b (h p) (w q) z")


class AutoEncoder2(AutoEncoder):
    """Encode images in [-1, 1] to normalised latents, and decode them. Moments are those of normalised latents."""

    def __init__(self, config: AutoEncoder2Config, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        point = lambda channels: nnx.Conv(channels, channels, (1, 1), dtype=config.dtype, rngs=rngs)
        self.quant_conv = point(2 * config.z_channels)
        self.post_quant_conv = point(config.z_channels)
        self.bn = BatchNorm(config, rngs=rngs)

    def raw_moments(self, images: Float[Array, "b H W c"]) -> Float[Array, "b h w two_z"]:
        """Return mean and log-variance before normalisation, concatenated, in float32."""
        return self.quant_conv(self.encoder(images.astype(self.config.dtype))).astype(jnp.float32)

    def moments(self, images: Float[Array, "b H W c"]) -> tuple[Float[Array, "b h w z"], Float[Array, "b h w z"]]:
        """Return the mean and log-variance of the posterior of normalised latents.

        Raises:
          ValueError: a side of the images is not a multiple of `config.downscale` times `config.cell`.
        """
        mean, logvar = super().moments(images)
        return self.bn.normalise(mean), self.bn.normalise_logvar(logvar)

    def decode_unscaled(self, z: Float[Array, "b h w z"], *, remat: bool = False) -> Float[Array, "b H W c"]:
        """Return images for normalised latents, such as `moments` returns."""
        raw = self.bn.restore(z.astype(jnp.float32)).astype(self.config.dtype)
        return super().decode_unscaled(self.post_quant_conv(raw), remat=remat)
