# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Copies of large matrices at the speed of memory."""

from collections.abc import Sequence

import ml_dtypes
import numpy as np

from uso_jax.weights.strided_copy import copy_cast

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def contiguous(value: np.ndarray) -> np.ndarray:
    """Return an array in row-major order; the array itself if it already is."""
    if value.flags.c_contiguous:
        return value
    out = np.empty(value.shape, value.dtype)
    copy_cast(out, value)
    return out


class Buffer:
    """Memory that is reused for one array after another, so that the system need not clear new pages each time."""

    def __init__(self):
        self._bytes = np.empty(0, np.uint8)

    def __call__(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """Return an array with undefined contents, valid until the next call."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if self._bytes.size < size:
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size].view(dtype).reshape(tuple(shape))
