# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""AlexNet's convolutions, through which LPIPS looks at pictures by default.

Source: torchvision, models/alexnet.py (`features`); arXiv 1404.5997, 1801.03924.
Shapes: b batch, h w pixels or positions, c channels.
"""

from dataclasses import dataclass

import jax
from flax import nnx
from jaxtyping import Array, Float


@dataclass(frozen=True)
class AlexNetConfig:
    """Channels of the five convolutions."""

    channels: tuple[int, int, int, int, int] = (64, 192, 384, 256, 256)


class AlexNet(nnx.Module):
    """Give the rectified output of every convolution."""

    def __init__(self, config: AlexNetConfig = AlexNetConfig(), *, rngs: nnx.Rngs):
        a, b, c, d, e = config.channels
        self.convs = nnx.List(
            [
                nnx.Conv(3, a, (11, 11), strides=4, padding=2, rngs=rngs),
                nnx.Conv(a, b, (5, 5), padding=2, rngs=rngs),
                *(nnx.Conv(i, o, (3, 3), padding=1, rngs=rngs) for i, o in ((b, c), (c, d), (d, e))),
            ]
        )

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> list[Float[Array, "b _ _ _"]]:
        """Read pictures of at least 35 pixels a side, normalised as the user of the features wants them."""
        x, features = pixels, []
        for number, conv in enumerate(self.convs):
            if number in (1, 2):
                x = nnx.max_pool(x, (3, 3), (2, 2))
            x = jax.nn.relu(conv(x))
            features.append(x)
        return features
