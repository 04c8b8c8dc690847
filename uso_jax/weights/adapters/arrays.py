# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters on disk to which adapters are added as they are read, one layer at a time."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uso_jax.common.errors import InputError
from uso_jax.weights.adapters.changes import Change
from uso_jax.weights.lazy_array import Index, LazyArray
from uso_jax.weights.strided_copy import copy_cast
from uso_jax.weights.tables.table import Entry


@dataclass(frozen=True)
class Applied:
    """A change of one adapter with its strength, and the tensor it is made to; `adapter` names it in errors."""

    entry: Entry
    change: Change
    strength: float
    adapter: str


class AdaptedArray(LazyArray):
    """A parameter with changes.

    The sum is computed in float32 and rounded once. Changes that depend on the base (DoRA, whole values) take the
    stored numbers, so the order of adapters does not matter.

    Args:
      path: of the parameter.
      base: all stored parameters of the transformer.
      applied: the changes of tensors that hold a part of this parameter.
    """

    def __init__(self, path: str, base: Mapping[str, Any], applied: Sequence[Applied]):
        self.path, self._base = path, base
        self.shape, self.dtype = tuple(base[path].shape), np.dtype(base[path].dtype)
        self._applied: dict[int | None, list[Applied]] = {}
        for one in applied:
            self._applied.setdefault(one.entry.layer, []).append(one)

    def part(self, index: Index, dtype: Any = None) -> np.ndarray:
        return self.parts([index], dtype)[0]

    def parts(self, indices: Iterable[Index], dtype: Any = None) -> list[np.ndarray]:
        """Read several parts; a layer is computed once for all of them."""
        if None in self._applied:
            whole = self._layer(None)
            return [whole[index].astype(dtype or self.dtype) for index in indices]
        bounds = [[s.indices(size)[:2] for s, size in zip(index, self.shape, strict=True)] for index in indices]
        found = [np.empty([stop - start for start, stop in one], dtype or self.dtype) for one in bounds]
        for layer in range(self.shape[0]):
            asked = [(out, one) for out, one in zip(found, bounds, strict=True) if layer in range(*one[0])]
            value = self._layer(layer) if asked and layer in self._applied else None
            for out, (layers, *others) in asked:
                inner = tuple(slice(*bound) for bound in others)
                if value is None:
                    out[layer - layers[0]] = self._base[self.path].part((slice(layer, layer + 1), *inner), out.dtype)[0]
                else:
                    copy_cast(out[layer - layers[0]], value[inner])
        return found

    def _layer(self, layer: int | None) -> np.ndarray:
        """Return one layer, or the whole parameter if it is no stack, in float32."""
        stored = self._base[self.path]
        value = np.array(stored if layer is None else stored[layer], np.float32)
        for one in self._applied[layer]:
            offset = 0
            for piece in one.entry.pieces:
                size = piece.stop - piece.start
                if piece.path == self.path:
                    whole = functools.partial(one.entry.join, self._base)
                    try:
                        rows = one.change.difference(whole, offset, offset + size)
                    except InputError as error:
                        raise InputError(f"{one.adapter}: {error}") from error
                    place = one.entry.place(piece) if layer is None else one.entry.place(piece)[1:]
                    value[place] += np.float32(one.strength) * one.entry.flax(rows)
                offset += size
        return value
