# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Kernels of linear layers in 8 or 4 bits: integers or float8, times float32 scales.

    x/kernel        [layers,] inputs, outputs         int8, float8_e4m3fn or int4; on disk an int8 holds two int4
    x/kernel_scale  [layers,] groups, outputs         float32

Each output channel has one scale for every group of inputs. A group is GROUP inputs for int4, where one scale for all
of them would lose too much, and all inputs otherwise. Two int4 of neighbouring output channels share a byte, the even
one in its low half: a safetensors file has no smaller type.

Quantised are the linear layers of blocks, including modulations, which are a quarter of FLUX, and other large ones.
Not quantised are small parameters (first and last layers, norms, biases), embeddings, convolutions, and components that
are trained (adapters, projector).
"""

import threading
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from uso_jax.models.components import ADAPTERS
from uso_jax.weights.lazy_array import Index, LazyArray
from uso_jax.weights.stored_array import StoredArray
from uso_jax.weights.strided_copy import copy_cast

FORMATS: Mapping[str, tuple[np.dtype, float]] = {  # dtype, largest number
    "int8": (np.dtype(np.int8), 127.0),
    "fp8": (np.dtype(ml_dtypes.float8_e4m3fn), 448.0),
    "int4": (np.dtype(ml_dtypes.int4), 7.0),
}
SMALLEST = 2**18  # numbers of a layer that is not one of a stack; FLUX's first and last linear layers have fewer
GROUP = 128

_FLOAT8 = np.arange(256, dtype=np.uint8).view(FORMATS["fp8"][0]).astype(np.float32)  # a table: faster than casts
_BLOCK = 2**18  # numbers at a time: what fits a processor's cache
Structs = Mapping[str, jax.ShapeDtypeStruct]


def scale_path(path: str) -> str:
    """Return the path of a kernel's scales."""
    return f"{path}_scale"


def choose(component: str, structs: Structs) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the parameters of a component that are quantised."""

    def large(path: str, shape: tuple[int, ...]) -> bool:
        linear = path.endswith("/kernel") and len(shape) in (2, 3) and shape[-1] % 2 == 0
        return linear and (len(shape) == 3 or shape[-2] * shape[-1] >= SMALLEST)

    return {path: s for path, s in structs.items() if component not in ADAPTERS and large(path, s.shape)}


def stored(path: str, struct: jax.ShapeDtypeStruct, mode: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the structs of numbers and scales that are on disk for a quantised parameter."""
    *layers, inputs, outputs = struct.shape
    groups = inputs // GROUP if mode == "int4" and inputs % GROUP == 0 else 1
    shape, dtype = (struct.shape, FORMATS[mode][0]) if mode != "int4" else ((*layers, inputs, outputs // 2), np.int8)
    return {
        path: jax.ShapeDtypeStruct(shape, dtype),
        scale_path(path): jax.ShapeDtypeStruct((*layers, groups, outputs), np.float32),
    }


def quantise(kernel: np.ndarray, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Quantise a kernel: return its numbers, in its own memory order, and its scales, as they are stored.

    Rounds to nearest even. The scale of a group of zeros is 1. NaN becomes 0, infinity the largest number of its group.
    """
    _, largest = FORMATS[mode]
    values, scales = stored("", jax.ShapeDtypeStruct(kernel.shape, kernel.dtype), mode).values()
    values = np.empty(values.shape, values.dtype, order="C" if kernel.flags.c_contiguous else "F")
    scales = np.empty(scales.shape, scales.dtype)
    inputs, outputs = kernel.shape[-2:]
    step = max(_BLOCK // inputs, 1) * 2
    for matrix, value, scale in zip(*(x if x.ndim == 3 else x[None] for x in (kernel, values, scales)), strict=True):
        for start in range(0, outputs, step):
            block = matrix[:, start : start + step].astype(np.float32)
            block = block.reshape(len(scale), -1, block.shape[1])
            extent = np.maximum(block.max(1), -block.min(1))
            if not np.isfinite(extent).all():
                extent = np.where(np.isfinite(block), np.abs(block), 0).max(1)
                np.nan_to_num(block, copy=False)
            extent /= np.float32(largest)
            extent[extent == 0] = 1
            scale[:, start : start + step] = extent
            block /= extent[:, None]
            np.clip(block, -largest, largest, out=block)
            block = block.reshape(inputs, -1)
            block = _float8(block) if mode == "fp8" else np.rint(block, out=block).astype(np.int8)
            if mode == "int4":
                value[:, start // 2 : (start + step) // 2] = (block[:, ::2] & 15) | (block[:, 1::2] << 4)
            else:
                value[:, start : start + step] = block
    return values, scales


def _float8(x: np.ndarray) -> np.ndarray:
    """Cast numbers up to 448 to float8_e4m3fn; ml_dtypes does it one at a time, several times as slowly."""
    bits = x.view(np.uint32)
    size = bits & 0x7FFFFFFF
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - 960  # 3 bits of fraction; 120 less in the exponent
    subnormal = np.rint(np.abs(x) * 512).astype(np.uint32)
    code = np.where(size < 0x3C800000, subnormal, normal) | ((bits >> 24) & 0x80)  # the former below 2**-6
    return code.astype(np.uint8).view(FORMATS["fp8"][0])


class _Int4(LazyArray):
    """Packed int4 on disk."""

    def __init__(self, packed: Any):
        self._packed = packed
        self.shape, self.dtype = (*packed.shape[:-1], packed.shape[-1] * 2), FORMATS["int4"][0]

    def part(self, index: Index, dtype: Any = None) -> np.ndarray:
        start, stop, _ = index[-1].indices(self.shape[-1])
        packed = self._packed.part((*index[:-1], slice(start // 2, -(-stop // 2))))
        pairs = np.empty((*packed.shape, 2), np.int8)
        np.right_shift(packed << 4, 4, out=pairs[..., 0])
        np.right_shift(packed, 4, out=pairs[..., 1])
        out = pairs.reshape(*packed.shape[:-1], -1)[..., start % 2 :][..., : stop - start]
        return out.astype(dtype or self.dtype)


class QuantisedArray(LazyArray):
    """A quantised parameter on disk; what it reads is numbers times scales, layer by layer to save memory."""

    def __init__(self, values: StoredArray, scales: StoredArray, struct: jax.ShapeDtypeStruct, mode: str):
        self.values = _Int4(values) if mode == "int4" else values
        self.scales, self.shape, self.dtype = scales, tuple(struct.shape), np.dtype(struct.dtype)

    def part(self, index: Index, dtype: Any = None) -> np.ndarray:
        bounds = [s.indices(size)[:2] for s, size in zip(index, self.shape, strict=True)]
        out = np.empty([stop - start for start, stop in bounds], dtype or self.dtype)
        (first, last), outputs = bounds[-2], slice(*bounds[-1])
        groups = self.scales.shape[-2]
        size = self.shape[-2] // groups
        for number in range(len(out) if out.ndim == 3 else 1):
            layer = [slice(bounds[0][0] + number, bounds[0][0] + number + 1)] if out.ndim == 3 else []
            block = self.values.part((*layer, slice(first, last), outputs))
            block = (
                _FLOAT8[block.view(np.uint8)] if self.values.dtype == FORMATS["fp8"][0] else block.astype(np.float32)
            )
            scales = self.scales.part((*layer, slice(first // size, -(-last // size)), outputs))
            scales = scales.reshape(-1, scales.shape[-1])
            block = block.reshape(-1, block.shape[-1])
            block *= scales if groups == 1 else scales[np.arange(first, last) // size - first // size]
            copy_cast(out[number] if out.ndim == 3 else out, block)
        return out


class InMemory:
    """A kernel stored whole, quantised when its numbers or scales are first read."""

    def __init__(self, array: Any, mode: str):
        self._array, self._mode, self._lock, self._made = array, mode, threading.Lock(), ()
        structs = stored("", jax.ShapeDtypeStruct(array.shape, array.dtype), mode).values()
        values, scales = (_Part(self, number, struct) for number, struct in enumerate(structs))
        self.values, self.scales = _Int4(values) if mode == "int4" else values, scales

    def whole(self) -> tuple[np.ndarray, np.ndarray]:
        """Return numbers and scales as they are stored, quantised layer by layer: float32 is several times as large."""
        with self._lock:
            if not self._made and len(self._array.shape) == 3:
                layers = [quantise(self._array[row], self._mode) for row in range(self._array.shape[0])]
                self._made = tuple(np.stack(part) for part in zip(*layers, strict=True))
            elif not self._made:
                self._made = quantise(np.asarray(self._array), self._mode)
            return self._made


class _Part(LazyArray):
    """Numbers or scales of a kernel in memory."""

    def __init__(self, kernel: InMemory, number: int, struct: jax.ShapeDtypeStruct):
        self._kernel, self._number, self.shape, self.dtype = kernel, number, struct.shape, np.dtype(struct.dtype)

    def part(self, index: Index, dtype: Any = None) -> np.ndarray:
        return self._kernel.whole()[self._number][index].astype(dtype or self.dtype)


def scale_sharding(sharding: jax.sharding.Sharding | None, shape: tuple[int, ...]) -> jax.sharding.Sharding | None:
    """Return the sharding of scales of this shape for a kernel's: groups are sharded like inputs if they divide."""
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return sharding
    spec = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    names = spec[-2] if isinstance(spec[-2], tuple) else (spec[-2],) if spec[-2] else ()
    if shape[-2] % int(np.prod([sharding.mesh.shape[name] for name in names], dtype=int)):
        spec[-2] = None
    return jax.sharding.NamedSharding(
        sharding.mesh, jax.sharding.PartitionSpec(*spec), memory_kind=sharding.memory_kind
    )
