# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Files as the safetensors library reads them; its own numpy interface lacks float8."""

import pathlib

import ml_dtypes
import numpy as np
import safetensors

DTYPES = {
    "I8": np.int8,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
}


def load_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Return all tensors of a file by name."""
    found = safetensors.deserialize(path.read_bytes())
    return {name: np.frombuffer(x["data"], DTYPES[x["dtype"]]).reshape(x["shape"]) for name, x in found}
