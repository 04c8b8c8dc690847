# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A parameter on disk, of which only the requested part is read."""

import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from uso_jax.weights.lazy_array import Index, LazyArray
from uso_jax.weights.strided_copy import copy_cast

Place = tuple[pathlib.Path, int]  # a file and a byte offset in it


class StoredArray(LazyArray):
    """One parameter on disk: chunks of whole rows along the first axis.

    Args:
      struct: shape and dtype.
      rows: rows in a chunk; the last chunk may have fewer.
      place: return the file and offset of a chunk, given its number.
      order: "C", or "F" for chunks that are stored column-major.
    """

    def __init__(
        self,
        struct: jax.ShapeDtypeStruct,
        rows: int,
        place: Callable[[int], Place],
        order: Literal["C", "F"] = "C",
    ):
        self.shape, self.dtype = tuple(struct.shape), np.dtype(struct.dtype)
        self._rows, self._place, self._order = rows, place, order

    def part(self, index: Index, dtype: Any = None) -> np.ndarray:
        bounds = [s.indices(size)[:2] for s, size in zip(index, self.shape, strict=True)]
        out = np.empty([stop - start for start, stop in bounds], dtype or self.dtype)
        if not out.size:
            return out
        if not self.shape:
            out[...] = self._chunk(0)[0]
            return out
        (start, stop), inner = bounds[0], tuple(slice(*b) for b in bounds[1:])
        for number in range(start // self._rows, -(-stop // self._rows)):
            first = number * self._rows
            low, high = max(start, first), min(stop, first + self._rows)
            copy_cast(out[low - start : high - start], self._chunk(number)[(slice(low - first, high - first), *inner)])
        return out

    def _chunk(self, number: int) -> np.ndarray:
        # A chunk is mapped only while it is copied from: mapped pages of large files would count as this process's
        # memory until they are unmapped.
        file, offset = self._place(number)
        size = (self.shape or (1,))[0]
        shape = (min(self._rows, size - number * self._rows), *self.shape[1:])
        return np.memmap(file, self.dtype, "r", offset, shape, self._order)
