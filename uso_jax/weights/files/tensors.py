# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tensors that are read on request, from files or computed from other such tensors."""

import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from uso_jax.common.errors import InputError
from uso_jax.weights.files.arrays import BFLOAT16
from uso_jax.weights.files.safetensors_file import SafetensorsFile, Tensor

_FLOAT8 = (np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2))


@runtime_checkable
class File(Protocol):
    """A checked file of tensors, such as `SafetensorsFile`."""

    path: pathlib.Path
    size: int
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    def read(self, key: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read a tensor, or rows `start` to `stop` of its first axis."""


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """One tensor; `read(start, stop)` returns rows of it, in `dtype` or, if it is computed, in a wider one."""

    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[..., np.ndarray]
    place: tuple[int, int]  # file and offset, to read in the order of the disk
    file: File | None = None  # the file that holds it unchanged, if any; then `read` also takes a Buffer


Sources = dict[str, LazyTensor]


def computed(
    like: LazyTensor, shape: Sequence[int], make: Callable[[], np.ndarray], dtype: np.dtype | None = None
) -> LazyTensor:
    """Return a tensor computed from others; `like` is the first of them and gives its place and default dtype."""
    return LazyTensor(dtype or like.dtype, tuple(shape), lambda start=0, stop=None: make()[start:stop], like.place)


def merge_sources(files: Sequence[File]) -> tuple[Sources, list[str]]:
    """Return the tensors of several files by key, and the keys that occur more than once."""
    found: Sources = {}
    twice = []
    for number, file in enumerate(files):
        for key, tensor in file.tensors.items():
            if key in found:
                twice.append(key)
                continue
            direct = file if isinstance(file, SafetensorsFile) else None
            read = functools.partial(file.read, key)
            found[key] = LazyTensor(tensor.dtype, tensor.shape, read, (number, tensor.start), direct)
    return found, twice


# ---------------------------------------------------------------------------------------------------- 8 bits


def dequantise(found: Sources) -> tuple[Sources, int]:
    """Turn float8 tensors into bfloat16, multiplied by the scale if ComfyUI stored one; return all tensors and a count.

    bfloat16 holds every unscaled float8 exactly. A scaled one is read in float32, and rounded when it is cast.
    """
    weights = [key for key, source in found.items() if source.dtype in _FLOAT8 and not key.endswith("scaled_fp8")]
    result, spent = {}, set()
    for key in weights:
        stem = key.removesuffix("weight")
        scale = next((k for k in (f"{stem}scale_weight", f"{stem}weight_scale") if key != stem and k in found), None)
        # Scales of activations are used by 8-bit products only, and notes on the format repeat the dtype.
        spent |= {k for k in (f"{stem}scale_input", f"{stem}input_scale", f"{stem}comfy_quant") if k in found}
        result[key] = _plain(found[key]) if scale is None else _scaled(key, found[key], found[scale])
        spent |= {scale} - {None}
    if weights:
        spent |= {key for key in found if re.fullmatch(r"(.*\.)?scaled_fp8", key)}
    return {key: result.get(key, source) for key, source in found.items() if key not in spent}, len(weights)


def _plain(source: LazyTensor) -> LazyTensor:
    read = lambda start=0, stop=None: source.read(start, stop).astype(BFLOAT16)
    return dataclasses.replace(source, dtype=BFLOAT16, read=read, file=None)


def _scaled(key: str, source: LazyTensor, scale: LazyTensor) -> LazyTensor:
    by_row = math.prod(scale.shape) == (source.shape or (1,))[0] != 1
    if (math.prod(scale.shape) != 1 and not by_row) or scale.dtype.kind not in "fV":
        raise InputError(f"the scale of {key} has shape {list(scale.shape)}; one number, or one a row, was expected")

    def read(start: int = 0, stop: int | None = None) -> np.ndarray:
        factor = scale.read().astype(np.float32).reshape(-1)
        factor = factor[start:stop].reshape(-1, *[1] * (len(source.shape) - 1)) if by_row else factor[0]
        return source.read(start, stop).astype(np.float32) * factor

    return dataclasses.replace(source, dtype=BFLOAT16, read=read, file=None)
