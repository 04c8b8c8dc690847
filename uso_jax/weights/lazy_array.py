# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""An array of which only the requested parts are read or computed."""

from collections.abc import Iterable
from typing import Any

import numpy as np

Index = tuple[slice, ...]  # one slice a dimension, without steps


class LazyArray:
    """The interface of parameters that are not in memory; subclasses have `part`."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def part(self, index: Index, dtype: Any = None) -> np.ndarray:
        """Read the part that the slices select, cast to `dtype` if given."""
        raise NotImplementedError

    def parts(self, indices: Iterable[Index], dtype: Any = None) -> list[np.ndarray]:
        """Read several parts, such as the shards of devices."""
        return [self.part(index, dtype) for index in indices]

    def __getitem__(self, row: int) -> np.ndarray:
        return self.part((slice(row, row + 1), *(slice(None),) * (len(self.shape) - 1)))[0]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.part((slice(None),) * len(self.shape), dtype)
