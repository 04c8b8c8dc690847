# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters on disk to which adapters are added as they are read, one layer at a time."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uso_jax.common.errors import InputError
from uso_jax.weights.adapters.changes import Change
from uso_jax.weights.strided_copy import copy_cast
from uso_jax.weights.tables.table import Entry


@dataclass(frozen=True)
class Applied:
    """A change of one adapter with its strength, and the tensor it is made to; `adapter` names it in errors."""

    entry: Entry
    change: Change
    strength: float
    adapter: str


class AdaptedArray:
    """A parameter with changes, with the interface of StoredArray.

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

    def part(self, index: tuple[slice, ...], dtype: Any = None) -> np.ndarray:
        """Read the part that the slices select, cast to `dtype` if given."""
        if None in self._applied:
            return self._layer(None)[index].astype(dtype or self.dtype)
        bounds = [s.indices(size)[:2] for s, size in zip(index, self.shape, strict=True)]
        out = np.empty([stop - start for start, stop in bounds], dtype or self.dtype)
        inner = tuple(slice(*b) for b in bounds[1:])
        for number, layer in enumerate(range(*bounds[0])):
            if layer in self._applied:
                copy_cast(out[number], self._layer(layer)[inner])
            else:
                out[number] = self._base[self.path].part((slice(layer, layer + 1), *inner), out.dtype)[0]
        return out

    def __getitem__(self, row: int) -> np.ndarray:
        return self.part((slice(row, row + 1), *(slice(None),) * (len(self.shape) - 1)))[0]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.part((slice(None),) * len(self.shape), dtype)

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
