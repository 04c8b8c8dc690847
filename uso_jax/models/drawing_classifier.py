# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A small convolutional classifier of drawn subjects and styles, to evaluate mini's images.

It shares neither architecture nor objective nor seed with the networks that condition or reward mini.
Shapes: b batch, h w pixels, s subjects, k styles.
"""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


@dataclass(frozen=True)
class DrawingClassifierConfig:
    """Numbers of classes, channels per level (each level halves the image), and the input size in pixels."""

    num_subjects: int = 106  # subjects to tell apart
    num_styles: int = 35  # styles to tell apart
    channels: tuple[int, ...] = (32, 64, 96, 128)  # channels of each stage
    image_size: int = 32  # pixels per side of an image


class DrawingClassifier(nnx.Module):
    """Classify subject and style of images in [-1, 1], which are resized to `image_size`."""

    def __init__(self, config: DrawingClassifierConfig, *, rngs: nnx.Rngs):
        widths = (3, *config.channels)
        self.convs = nnx.List([nnx.Conv(i, o, (3, 3), rngs=rngs) for i, o in itertools.pairwise(widths)])
        self.norms = nnx.List(
            [nnx.GroupNorm(width, 8, use_fast_variance=False, rngs=rngs) for width in config.channels]
        )
        self.image_size = config.image_size
        features = config.channels[-1] + config.channels[0]
        self.subject = nnx.Linear(features, config.num_subjects, rngs=rngs)
        self.style = nnx.Linear(features, config.num_styles, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b s"], Float[Array, "b k"]]:
        """Return the logits of subjects and of styles."""
        x, first = images, None
        if x.shape[1:3] != (self.image_size, self.image_size):
            x = jax.image.resize(x, (len(x), self.image_size, self.image_size, 3), "linear")
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.relu(norm(conv(x)))
            first = x.mean(axis=(1, 2)) if first is None else first  # pooling removes fine texture
            x = nnx.max_pool(x, (2, 2), (2, 2))
        features = jnp.concatenate([x.mean(axis=(1, 2)), first], axis=-1)
        return self.subject(features), self.style(features)
