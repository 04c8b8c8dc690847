# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Quantised kernels that stay quantised: numbers and scales on the device, multiplied inside the layer that uses them.

A layer reads its kernel as `kernel[...]`, and a stack of layers is scanned, so only the kernels of one layer are ever
whole, as temporaries of the program. The product is the one of `weights.load`, and so are the images.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from uso_jax.models.components import ADAPTERS, by_component, component_of
from uso_jax.models.uso import USO
from uso_jax.parallel.constraints import as_it_lies
from uso_jax.params import Params
from uso_jax.weights import quantization


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kernel:
    """A kernel as a layer's parameter: `numbers` [layers,] i o times `scales` [layers,] groups o, in `dtype`."""

    numbers: Array
    scales: Array
    dtype: Any = field(default=jnp.float32, metadata=dict(static=True))

    def __getitem__(self, index: Any) -> Float[Array, "*layers i o"]:
        *layers, inputs, outputs = shape = self.numbers.shape
        groups = self.scales.shape[-2]
        blocks = as_it_lies(self.numbers).astype(jnp.float32).reshape(*layers, groups, inputs // groups, outputs)
        kernel = (blocks * self.scales[..., None, :]).reshape(shape).astype(self.dtype)
        # Without the barrier XLA keeps both factors in float32, each as large as the kernel, until the product.
        return jax.lax.optimization_barrier(kernel)[index]


def join(params: Mapping[str, Any], dtype: Callable[[str], Any] = lambda path: jnp.float32) -> dict[str, Any]:
    """Combine every kernel with its scales; `dtype` maps a path to the dtype that its layer computes in."""
    scales = {path: quantization.scale_path(path) for path in params if quantization.scale_path(path) in params}
    kernels = {path: Kernel(params[path], params[scale], dtype(path)) for path, scale in scales.items()}
    return {path: value for path, value in params.items() if path not in scales.values()} | kernels


def describe(
    structs: Mapping[str, jax.ShapeDtypeStruct], mode: str, components: Collection[str] | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the structs of a USO's parameters as `weights.load_quantized` places them; `components` None: all."""
    found = dict(structs)
    for component, paths in by_component(structs).items() if mode else ():
        if components is not None and component not in components:
            continue
        for inner, struct in quantization.choose(component, {inner: structs[p] for inner, p in paths.items()}).items():
            path, scales = paths[inner], quantization.stored(inner, struct, mode)[quantization.scale_path(inner)]
            place = quantization.scale_sharding(struct.sharding, scales.shape)
            found[path] = jax.ShapeDtypeStruct(struct.shape, quantization.FORMATS[mode][0], sharding=struct.sharding)
            found[quantization.scale_path(path)] = jax.ShapeDtypeStruct(scales.shape, scales.dtype, sharding=place)
    return found


class QuantizedUSO(USO):
    """A System that also takes kernels as `weights.load_quantized` gives them."""

    def module(self, params: Params, name: str) -> nnx.Module:
        prefix = f"{name}/"
        own = {path.removeprefix(prefix): value for path, value in params.items() if path.startswith(prefix)}
        return self.structures[name](join(own, lambda path: self._dtype(name, path)))

    def _dtype(self, name: str, path: str) -> Any:
        component, _ = component_of(f"{name}/{path}")
        network = self.config.network("transformer" if component in ADAPTERS else component)
        return jnp.dtype(getattr(network, "dtype", "float32"))
