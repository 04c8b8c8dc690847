# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Copies between arrays of different strides and dtypes at the speed of memory."""

import numpy as np

_STRIP = 32  # columns of a matrix copied at a time; transposing all at once is several times slower


def copy_cast(out: np.ndarray, value: np.ndarray) -> None:
    """Copy `value` into `out`, casting to its dtype.

    Transposed matrices are copied in strips of columns: read row by row, each number would miss the cache.
    """
    if out.ndim == 3:
        for row, matrix in zip(out, value, strict=True):
            copy_cast(row, matrix)
        return
    if out.dtype == value.dtype and out.dtype.itemsize == 2:
        out, value = out.view(np.uint16), value.view(np.uint16)  # numpy copies its own dtypes faster
    with np.errstate(over="ignore", invalid="ignore"):
        if out.ndim != 2 or value.flags.c_contiguous:
            out[...] = value
            return
        for start in range(0, out.shape[1], _STRIP):
            out[:, start : start + _STRIP] = value[:, start : start + _STRIP]
