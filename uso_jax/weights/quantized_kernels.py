# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Quantised kernels that stay quantised: numbers and scales on the device, multiplied inside the layer that uses them.

A product scales the numbers while it reads them; with int4 the layer's kernel is written first. A stack of layers is
scanned, so only one layer's kernel is ever whole. The images are those of `weights.load` up to rounding.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from uso_jax.common.errors import InputError
from uso_jax.models.components import ADAPTERS, by_component, component_of
from uso_jax.models.layers.quantized_kernel import QuantizedKernel
from uso_jax.models.uso import USO
from uso_jax.models.uso_config import USOConfig
from uso_jax.params import Params
from uso_jax.weights import quantization


def join(
    params: Mapping[str, Any], dtype: Callable[[str], Any] = lambda path: jnp.float32, *, in_8_bits: bool = False
) -> dict[str, Any]:
    """Combine every kernel with its scales; `dtype` maps a path to the dtype that its layer computes in."""
    scales = {path: quantization.scale_path(path) for path in params if quantization.scale_path(path) in params}
    kernels = {
        path: QuantizedKernel(params[path], params[scale], dtype(path), in_8_bits) for path, scale in scales.items()
    }
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


def check_products(mode: str, platform: str, kind: str) -> None:
    """Check that devices multiply tokens in the 8 bits of kernels in a format.

    Args:
      mode: the format; "": not quantised.
      platform: of the devices, such as "tpu".
      kind: JAX's `device_kind`.

    Raises:
      InputError: it does not.
    """
    if mode not in (eight := ("int8", "fp8")):
        how = f"in {mode}" if mode else "not quantised"
        raise InputError(
            f"quantize_activations needs a transformer in {' or '.join(eight)}, and this one is {how}; import the"
            " weights with --quantize int8"
        )
    has = "fp8" if kind.startswith("TPU7") else "int8"
    if platform == "tpu" and mode != has:
        raise InputError(
            f"quantize_activations: {kind} has no products in {mode}; import the weights with --quantize"
            f" {has}, or leave quantize_activations out"
        )


class QuantizedUSO(USO):
    """A System that also takes kernels as `weights.load_quantized` gives them.

    With `quantize_activations`, the products of the transformer's tokens are in the 8 bits of its kernels.
    """

    def __init__(self, config: USOConfig, *args: Any, quantize_activations: bool = False, **options: Any):
        super().__init__(config, *args, **options)
        self.quantize_activations = quantize_activations

    def with_config(self, config: USOConfig) -> "QuantizedUSO":
        return type(self)(config, quantize_activations=self.quantize_activations)

    def module(self, params: Params, name: str) -> nnx.Module:
        prefix = f"{name}/"
        own = {path.removeprefix(prefix): value for path, value in params.items() if path.startswith(prefix)}
        in_8_bits = self.quantize_activations and name == "transformer"
        return self.structures[name](join(own, lambda path: self._dtype(name, path), in_8_bits=in_8_bits))

    def _dtype(self, name: str, path: str) -> Any:
        component, _ = component_of(f"{name}/{path}")
        network = self.config.network("transformer" if component in ADAPTERS else component)
        return jnp.dtype(getattr(network, "dtype", "float32"))
