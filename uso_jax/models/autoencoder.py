# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""FLUX.1's convolutional autoencoder: images <-> 16-channel latents, downscaled 8 times per side.

Source: black-forest-labs/flux, modules/autoencoder.py. Parameter names match it; channels are last.
Shapes: b batch, H W pixels, h w latent grid, c i o channels, z latent channels.
"""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from uso_jax.models.attention.dispatch import attention


@dataclass(frozen=True)
class AutoEncoderConfig:
    """Sizes and latent scaling; the defaults are FLUX.1's ae.safetensors."""

    cell: ClassVar[int] = 1  # latents per side that are normalised together: grids and tiles are multiples of it

    in_channels: int = 3  # channels of an image
    ch: int = 128  # channels of the first level
    out_ch: int = 3  # channels of a decoded image
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)  # channels of each level over ch; each further level halves the image
    num_res_blocks: int = 2  # residual blocks of a level
    z_channels: int = 16  # channels of a latent
    scale_factor: float = 0.3611  # factor of latents
    shift_factor: float = 0.1159  # subtracted from latents before they are scaled
    norm_groups: int = 32  # groups of the group norms
    dtype: str = "float32"  # of matrix products

    def __post_init__(self):
        if self.ch % self.norm_groups:
            raise ValueError(f"ch {self.ch} is not divisible by norm_groups {self.norm_groups}")

    @property
    def downscale(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.ch_mult) - 1)

    @classmethod
    def tiny(cls, **changes) -> "AutoEncoderConfig":
        """Return the config of an autoencoder for tests, which runs in milliseconds."""
        sizes = dict(ch=8, ch_mult=(1, 2), num_res_blocks=1, z_channels=4, norm_groups=4)
        return cls(**(sizes | changes))


def _norm(config: AutoEncoderConfig, channels: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return nnx.GroupNorm(
        channels, config.norm_groups, epsilon=1e-6, dtype=jnp.float32, use_fast_variance=False, rngs=rngs
    )


def _conv(config: AutoEncoderConfig, in_ch: int, out_ch: int, size: int, rngs: nnx.Rngs, **options) -> nnx.Conv:
    return nnx.Conv(in_ch, out_ch, (size, size), dtype=config.dtype, rngs=rngs, **options)


class ResnetBlock(nnx.Module):
    """Two convolutions with pre-normalisation and a skip connection."""

    def __init__(self, config: AutoEncoderConfig, in_ch: int, out_ch: int, *, rngs: nnx.Rngs):
        self.norm1 = _norm(config, in_ch, rngs)
        self.conv1 = _conv(config, in_ch, out_ch, 3, rngs)
        self.norm2 = _norm(config, out_ch, rngs)
        self.conv2 = _conv(config, out_ch, out_ch, 3, rngs)
        self.nin_shortcut = _conv(config, in_ch, out_ch, 1, rngs) if in_ch != out_ch else None

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        y = self.conv1(jax.nn.silu(self.norm1(x)).astype(x.dtype))
        y = self.conv2(jax.nn.silu(self.norm2(y)).astype(x.dtype))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nnx.Module):
    """Single-head attention over all positions."""

    def __init__(self, config: AutoEncoderConfig, ch: int, *, rngs: nnx.Rngs):
        self.norm = _norm(config, ch, rngs)
        self.q = _conv(config, ch, ch, 1, rngs)
        self.k = _conv(config, ch, ch, 1, rngs)
        self.v = _conv(config, ch, ch, 1, rngs)
        self.proj_out = _conv(config, ch, ch, 1, rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        y = self.norm(x).astype(x.dtype)
        q, k, v = (layer(y).reshape(x.shape[0], -1, 1, x.shape[-1]) for layer in (self.q, self.k, self.v))
        return x + self.proj_out(attention(q, k, v, implementation="xla").reshape(x.shape))


class Middle(nnx.Module):
    """Residual block, attention and residual block at the lowest resolution."""

    def __init__(self, config: AutoEncoderConfig, ch: int, *, rngs: nnx.Rngs):
        self.block_1 = ResnetBlock(config, ch, ch, rngs=rngs)
        self.attn_1 = AttnBlock(config, ch, rngs=rngs)
        self.block_2 = ResnetBlock(config, ch, ch, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nnx.Module):
    """Halve the grid; like the original, pad only at the bottom and right."""

    def __init__(self, config: AutoEncoderConfig, ch: int, *, rngs: nnx.Rngs):
        self.conv = _conv(config, ch, ch, 3, rngs, strides=2, padding=((0, 1), (0, 1)))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return self.conv(x)


class Upsample(nnx.Module):
    """Double the grid by nearest-neighbour upsampling, then convolve."""

    def __init__(self, config: AutoEncoderConfig, ch: int, *, rngs: nnx.Rngs):
        self.conv = _conv(config, ch, ch, 3, rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
        return self.conv(x.repeat(2, axis=1).repeat(2, axis=2))


class Level(nnx.Module):
    """The residual blocks of one resolution, then down- or upsampling."""

    def __init__(self, config: AutoEncoderConfig, channels: list[int], resample: str | None, *, rngs: nnx.Rngs):
        self.block = nnx.List([ResnetBlock(config, i, o, rngs=rngs) for i, o in itertools.pairwise(channels)])
        self.downsample = Downsample(config, channels[-1], rngs=rngs) if resample == "down" else None
        self.upsample = Upsample(config, channels[-1], rngs=rngs) if resample == "up" else None

    def __call__(self, x: Float[Array, "b h w i"], remat: bool = False) -> Float[Array, "b h2 w2 o"]:
        for block in self.block:
            x = jax.checkpoint(block)(x) if remat else block(x)
        for resample in (self.downsample, self.upsample):
            x = x if resample is None else resample(x)
        return x


class Encoder(nnx.Module):
    """Map images to the mean and log-variance of their latents."""

    def __init__(self, config: AutoEncoderConfig, *, rngs: nnx.Rngs):
        c = config
        widths = [c.ch, *(c.ch * mult for mult in c.ch_mult)]
        self.conv_in = _conv(c, c.in_channels, c.ch, 3, rngs)
        levels = []
        for i, (in_ch, out_ch) in enumerate(itertools.pairwise(widths)):
            resample = "down" if i < len(c.ch_mult) - 1 else None
            levels.append(Level(c, [in_ch, *[out_ch] * c.num_res_blocks], resample, rngs=rngs))
        self.down = nnx.List(levels)
        self.mid = Middle(c, widths[-1], rngs=rngs)
        self.norm_out = _norm(c, widths[-1], rngs)
        self.conv_out = _conv(c, widths[-1], 2 * c.z_channels, 3, rngs)

    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b h w moments"]:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        x = self.mid(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)).astype(x.dtype))


class Decoder(nnx.Module):
    """Map latents to images. As in the original, `up` starts at the highest resolution and runs in reverse."""

    def __init__(self, config: AutoEncoderConfig, *, rngs: nnx.Rngs):
        c = config
        widths = [c.ch * mult for mult in c.ch_mult]
        self.conv_in = _conv(c, c.z_channels, widths[-1], 3, rngs)
        self.mid = Middle(c, widths[-1], rngs=rngs)
        levels = []
        for i, out_ch in enumerate(widths):
            in_ch = widths[min(i + 1, len(widths) - 1)]
            resample = "up" if i else None
            levels.append(Level(c, [in_ch, *[out_ch] * (c.num_res_blocks + 1)], resample, rngs=rngs))
        self.up = nnx.List(levels)
        self.norm_out = _norm(c, widths[0], rngs)
        self.conv_out = _conv(c, widths[0], c.out_ch, 3, rngs)

    def __call__(self, z: Float[Array, "b h w z"], remat: bool = False) -> Float[Array, "b H W c"]:
        x = self.conv_in(z)
        x = jax.checkpoint(self.mid)(x) if remat else self.mid(x)
        for level in reversed(self.up):
            x = level(x, remat)
        return self.conv_out(jax.nn.silu(self.norm_out(x)).astype(x.dtype))


class AutoEncoder(nnx.Module):
    """Encode images in [-1, 1] to scaled latents, and decode them."""

    def __init__(self, config: AutoEncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def encode(self, images: Float[Array, "b H W c"], rng: Key[Array, ""] | None = None) -> Float[Array, "b h w z"]:
        """Return scaled latents: the posterior mean, or a sample if `rng` is passed (upstream always samples).

        Raises:
          ValueError: a side of the images is not a multiple of `config.downscale` times `config.cell`.
        """
        mean, logvar = self.moments(images)
        z = mean if rng is None else mean + jnp.exp(0.5 * logvar) * jax.random.normal(rng, mean.shape)
        return self.config.scale_factor * (z - self.config.shift_factor)

    def decode(self, z: Float[Array, "b h w z"], *, remat: bool = False) -> Float[Array, "b H W c"]:
        """Return images for scaled latents, nominally in [-1, 1] but not clipped.

        With `remat`, the backward pass keeps only the input of every residual block and recomputes the rest.
        """
        return self.decode_unscaled(z / self.config.scale_factor + self.config.shift_factor, remat=remat)

    def moments(self, images: Float[Array, "b H W c"]) -> tuple[Float[Array, "b h w z"], Float[Array, "b h w z"]]:
        """Return the unscaled mean and log-variance of the posterior.

        Raises:
          ValueError: a side of the images is not a multiple of `config.downscale` times `config.cell`.
        """
        factor = self.config.downscale * self.config.cell
        if images.shape[1] % factor or images.shape[2] % factor:
            raise ValueError(f"image size {images.shape[1]}x{images.shape[2]} must be a multiple of {factor}")
        mean, logvar = jnp.split(self.raw_moments(images), 2, axis=-1)
        return mean, logvar

    def raw_moments(self, images: Float[Array, "b H W c"]) -> Float[Array, "b h w two_z"]:
        """Return mean and log-variance as they leave the convolutions, concatenated, in float32."""
        return self.encoder(images.astype(self.config.dtype)).astype(jnp.float32)

    def decode_unscaled(self, z: Float[Array, "b h w z"], *, remat: bool = False) -> Float[Array, "b H W c"]:
        """Return images for unscaled latents, such as `moments` returns."""
        return self.decoder(z.astype(self.config.dtype), remat).astype(jnp.float32)
