# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Preprocessing of each image encoder: by PIL on the host, or differentiable on the device.

The host version equals transformers' PIL image processors bit for bit, or torchvision's transforms where the original
code uses them. The device version is for rewards, which need
gradients with respect to the pixels: the same bicubic filter without rounding to bytes.
Shapes: h w pixels, s size.
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from uso_jax.images.decode import Pixels, squash


@dataclass(frozen=True)
class Preprocess:
    """Resizing to `size` x `size` and normalisation to an encoder's range."""

    size: int
    short_side: int | None  # after resizing, before the centre crop; None: resize to the square, without a crop
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rounded: bool = False  # an odd margin of the crop is split as in torchvision; by default as in transformers

    def __post_init__(self):
        if self.short_side is not None and self.short_side < self.size:
            raise ValueError(f"short_side {self.short_side} is smaller than the crop of {self.size}")

    def resized(self, size: int) -> "Preprocess":
        """Return the same preprocessing for an encoder of another size."""
        short = None if self.short_side is None else self.short_side * size // self.size
        return dataclasses.replace(self, size=size, short_side=short)

    def host(self, image: Pixels) -> Float[np.ndarray, "{self.size} {self.size} 3"]:
        """Resize, crop and normalise one uint8 image."""
        resized, crop = self._geometry(*image.shape[:2])
        # The dtype of each step is the one of transformers.
        scaled = (squash(image, resized)[crop].astype(np.float64) * (1 / 255)).astype(np.float32)
        return (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def device(self, images: Float[Array, "*b h w 3"]) -> Float[Array, "*b {self.size} {self.size} 3"]:
        """Resize, crop and normalise images in [-1, 1] (the range of `uso.to_float`); other values are clipped."""
        (height, width), crop = self._geometry(*images.shape[-3:-1])
        *batch, rows, _, _ = images.shape
        x = (jnp.clip(images.astype(jnp.float32), -1, 1) + 1) / 2
        # PIL resizes horizontally first (Pillow 13: except tall images) and clips after each pass.
        for shape in ((*batch, rows, width, 3), (*batch, height, width, 3)):
            x = jnp.clip(jax.image.resize(x, shape, "cubic"), 0, 1)
        mean, std = (jnp.asarray(v, jnp.float32).reshape(*(1 for _ in batch), 1, 1, 3) for v in (self.mean, self.std))
        return (x[..., *crop, :] - mean) / std

    def _geometry(self, height: int, width: int) -> tuple[tuple[int, int], tuple[slice, slice]]:
        """Return (height, width) after resizing, and the slices of the crop."""
        if self.short_side is None:
            return (self.size, self.size), (slice(None), slice(None))
        short = min(height, width)
        resized = (self.short_side * height // short, self.short_side * width // short)
        # Both leave the smaller half of an odd margin at the top, but torchvision rounds halves to even numbers.
        half = (lambda margin: round(margin / 2)) if self.rounded else (lambda margin: margin // 2)
        top, left = (half(side - self.size) for side in resized)
        return resized, (slice(top, top + self.size), slice(left, left + self.size))


_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

SIGLIP = Preprocess(384, None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = Preprocess(224, 224, *_CLIP)
CSD = Preprocess(224, 224, *_CLIP, rounded=True)
IMAGE_REWARD = CSD
DINO = Preprocess(224, 256, *_IMAGENET, rounded=True)
DINOV2 = Preprocess(224, 256, *_IMAGENET)
