# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Components of manifest format 2, which were stored as zarr arrays without compression.

DIR/<component>/params/<path>/.zarray    shape, dtype and chunks
DIR/<component>/params/<path>/3.0.0      the bytes of chunk 3 along the first axis; other axes are not divided

The order of a chunk is "F" where it is one matrix of a linear layer imported from PyTorch.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from uso_jax.common import untrusted
from uso_jax.weights.stored_array import StoredArray


def open_zarr(folder: pathlib.Path, tensors: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, StoredArray]:
    """Return the parameters of a component's folder.

    Args:
      folder: DIR/<component>.
      tensors: shape and dtype of every parameter, as the manifest says.

    Raises:
      InputError: a header cannot be read.
      ValueError: a header contradicts the manifest.
    """
    return {path: _open_array(folder / "params" / path, struct) for path, struct in tensors.items()}


def _open_array(folder: pathlib.Path, struct: jax.ShapeDtypeStruct) -> StoredArray:
    header = untrusted.json(folder / ".zarray", dict[str, Any], remedy="import or copy the component again")
    shape, dtype = list(struct.shape), np.dtype(struct.dtype)
    rows, order = header["chunks"][0] if shape else 1, header["order"]
    # numpy's own dtypes have a code with their byte order, others only a name.
    sound = header["dtype"] in (dtype.str, dtype.name) and header["compressor"] is None
    if header["shape"] != shape or header["chunks"][1:] != shape[1:] or rows < 1 or order not in "CF" or not sound:
        raise ValueError(f"{folder / '.zarray'} contradicts the manifest")
    zeros = ["0"] * (len(shape) - 1)
    return StoredArray(struct, rows, lambda number: (folder / ".".join([str(number), *zeros]), 0), order)
