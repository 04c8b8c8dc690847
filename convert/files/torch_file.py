# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Pickled torch files (.bin, .pt, .pth), read by torch with `weights_only`, which runs no code from the file.

Nothing else needs torch, so it is imported only when such a file is opened.
"""

import argparse
import pathlib
from typing import Any

import ml_dtypes
import numpy as np

from uso_jax.common.errors import InputError
from uso_jax.weights.files.safetensors_file import Tensor

MAGIC = (b"PK\x03\x04", b"\x80\x02")
_INSIDE = ("model_state_dict", "state_dict", "model", "teacher")  # where training checkpoints keep their weights


class TorchFile:
    """The tensors of a pickled file, with the interface of `SafetensorsFile`."""

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        self.metadata: dict[str, str] = {}
        try:
            self.size = self.path.stat().st_size
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        self._found = self._load()
        self.tensors: dict[str, Tensor] = {}
        for number, (key, value) in enumerate(self._found.items()):
            dtype = self._dtype(key, value)
            # A view may repeat one stored number without end.
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise InputError(f"{path}: tensor {key} claims more numbers than are stored; the file is damaged")
            self.tensors[key] = Tensor(dtype, tuple(value.shape), number, number)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read a tensor, or rows `start` to `stop` of its first axis."""
        import torch

        value = self._found[key].detach()
        value = (value if value.ndim == 0 else value[start:stop]).contiguous()
        dtype = self.tensors[key].dtype
        if dtype.kind == "V" or dtype.itemsize == 1 or dtype == ml_dtypes.bfloat16:  # numpy itself lacks these
            return value.view({1: torch.uint8, 2: torch.int16}[dtype.itemsize]).numpy().view(dtype)
        return value.numpy()

    def _load(self) -> dict[str, Any]:
        try:
            import torch
        except ImportError as error:
            raise InputError(
                f"{self.path} is a pickled torch file, which only torch can read; install it, or take the safetensors"
                " release of the same weights"
            ) from error
        with self.path.open("rb") as file:
            zipped = file.read(2) == b"PK"
        try:
            # Training scripts keep their command line beside the weights; the class holds values and runs nothing.
            with torch.serialization.safe_globals([argparse.Namespace]):
                found = torch.load(self.path, map_location="cpu", weights_only=True, mmap=zipped or None)
        except Exception as error:  # the unpickler may raise anything on a damaged file
            lines = str(error).splitlines() or [type(error).__name__]
            if "weights_only" in str(error) or "Unsupported" in str(error):
                kind = next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0]).strip()
                raise InputError(
                    f"{self.path} holds more than weights and could run code, so it was not opened"
                    f" ({kind[:160]}); take the safetensors release of the same weights"
                ) from error
            raise InputError(f"{self.path} is not a valid torch file ({lines[0][:160]}); download it again") from error
        for name in _INSIDE:
            if isinstance(found, dict) and isinstance(found.get(name), dict):
                found = found[name]
                break
        if not isinstance(found, dict):
            raise InputError(f"{self.path} holds no state dict; pass a file of weights")
        return {str(key): value for key, value in found.items() if isinstance(value, torch.Tensor)}

    def _dtype(self, key: str, value: Any) -> np.dtype:
        name = str(value.dtype).removeprefix("torch.")
        if str(value.layout) != "torch.strided" or value.is_quantized:
            raise InputError(f"{self.path}: tensor {key} is sparse or quantised; take a plain release of the weights")
        try:
            return np.dtype(getattr(ml_dtypes, name, name))
        except TypeError as error:
            raise InputError(f"{self.path}: tensor {key} has the unsupported dtype {name}") from error
