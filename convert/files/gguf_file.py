# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""GGUF files, as ComfyUI-GGUF and stable-diffusion.cpp quantise transformers and text encoders.

The package `gguf` of llama.cpp reads the header and turns blocks into numbers. A row is read and converted at a time.
"""

import pathlib
import types

import numpy as np

from uso_jax.common import extras
from uso_jax.common.errors import InputError
from uso_jax.weights.files.arrays import BFLOAT16
from uso_jax.weights.files.safetensors_file import Tensor

MAGIC = b"GGUF"
_WHOLE = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "F64": np.dtype(np.float64), "BF16": BFLOAT16}


class GgufFile:
    """The tensors of a GGUF file, with the interface of `SafetensorsFile`; blocks become bfloat16.

    Raises:
      InputError: the package is not installed, the file is damaged, or a tensor has a type that cannot be read.
    """

    def __init__(self, path: str | pathlib.Path):
        extras.require("gguf")
        self.path = pathlib.Path(path)
        self.metadata: dict[str, str] = {}
        try:
            self.size = self.path.stat().st_size
            reader = _gguf().GGUFReader(self.path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error
        except Exception as error:  # the reader trusts the header, and may raise anything on a damaged one
            reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
            raise InputError(f"{path} is not a valid GGUF file ({reason}); download it again") from error
        self.tensors: dict[str, Tensor] = {}
        self._found = {}
        for found in reader.tensors:
            shape = tuple(int(side) for side in reversed(found.shape))
            dtype = _WHOLE.get(found.tensor_type.name, BFLOAT16)
            start = int(found.data_offset)
            self.tensors[found.name] = Tensor(dtype, shape, start, start + int(found.n_bytes))
            self._found[found.name] = found
            self._check(found.name, found.tensor_type)

    def _check(self, key: str, kind: object) -> None:
        """Raise InputError for a type of numbers that the package cannot convert."""
        quants = _gguf().quants
        if kind.name not in _WHOLE and kind not in quants._type_traits:
            raise InputError(f"{self.path}: tensor {key} is {kind.name}, which cannot be read; take Q8_0, Q4_K or F16")

    def read(self, key: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read a tensor, or rows `start` to `stop` of its first axis, float32 where it is quantised."""
        found, wanted = self._found[key], self.tensors[key]
        rows = found.data[start:stop] if wanted.shape else found.data
        if found.tensor_type.name == "BF16":
            return np.ascontiguousarray(rows).view(np.uint16).view(BFLOAT16).reshape(-1, *wanted.shape[1:])
        if found.tensor_type.name in _WHOLE:
            return np.ascontiguousarray(rows)
        numbers = _gguf().quants.dequantize(np.ascontiguousarray(rows), found.tensor_type)
        return numbers.reshape(-1, *wanted.shape[1:])


def _gguf() -> types.ModuleType:
    """Import the package, which takes a while."""
    import gguf
    import gguf.quants

    return gguf
