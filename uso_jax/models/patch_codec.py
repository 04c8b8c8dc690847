# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A linear image codec for mini: whitened principal components of square patches.

It is fitted in a second instead of trained, and its latents have few dimensions of unit variance, which a small flow
model learns far faster than raw pixels. Same interface as the autoencoder.
Shapes: b batch, H W pixels, h w patches, z latent channels.
"""

from dataclasses import dataclass

import einops
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8


@dataclass(frozen=True)
class PatchCodecConfig:
    """Patch side in pixels and the number of components kept."""

    patch_size: int = 8
    z_channels: int = 48

    def __post_init__(self):
        if not 0 < self.z_channels <= 3 * self.patch_size**2:
            raise ValueError(f"z_channels {self.z_channels} must lie in 1..{3 * self.patch_size**2}, a patch's numbers")

    @property
    def downscale(self) -> int:
        """Pixels a side of one latent."""
        return self.patch_size


class PatchCodec(nnx.Module):
    """Encode images in [-1, 1] to patch components and back; without `fit` the components are arbitrary pixels."""

    def __init__(self, config: PatchCodecConfig, *, rngs: nnx.Rngs):
        self.config = config
        size = 3 * config.patch_size**2
        self.mean = nnx.Param(jnp.zeros((size,)))
        self.basis = nnx.Param(jnp.eye(size, config.z_channels))
        self.scale = nnx.Param(jnp.ones((config.z_channels,)))

    def encode(self, images: Float[Array, "b H W 3"], rng: Key[Array, ""] | None = None) -> Float[Array, "b h w z"]:
        """Give the components of every patch; there is no posterior to sample, so `rng` changes nothing."""
        del rng
        side = self.config.patch_size
        if images.shape[1] % side or images.shape[2] % side:
            raise ValueError(f"image size {images.shape[1]}x{images.shape[2]} must be a multiple of {side}")
        patches = einops.rearrange(images, "b (h p) (w q) c -> b h w (p q c)", p=side, q=side)
        centred = patches - self.mean[...][None, None, None]
        return centred @ self.basis[...] / self.scale[...][None, None, None]

    def decode(self, z: Float[Array, "b h w z"]) -> Float[Array, "b H W 3"]:
        """Give the images of components, nominally in [-1, 1] but not clipped."""
        side = self.config.patch_size
        patches = (z * self.scale[...][None, None, None]) @ self.basis[...].T + self.mean[...][None, None, None]
        return einops.rearrange(patches, "b h w (p q c) -> b (h p) (w q) c", p=side, q=side, c=3)


def fit(config: PatchCodecConfig, images: UInt8[np.ndarray, "n H W 3"]) -> dict[str, Array]:
    """Give the codec parameters that lose least on `images`."""
    side = config.patch_size
    pixels = images.astype(np.float64) / 127.5 - 1
    patches = einops.rearrange(pixels, "n (h p) (w q) c -> (n h w) (p q c)", p=side, q=side)
    mean = patches.mean(axis=0)
    variances, vectors = np.linalg.eigh(np.cov(patches - mean, rowvar=False))
    basis = vectors[:, ::-1][:, : config.z_channels]
    # The sign of an eigenvector is arbitrary; fix it, so that two machines agree.
    basis = basis * np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(basis.shape[1])])
    scale = np.sqrt(np.maximum(variances[::-1][: config.z_channels], 1e-8))
    return {k: jnp.asarray(v, jnp.float32) for k, v in {"mean": mean, "basis": basis, "scale": scale}.items()}
