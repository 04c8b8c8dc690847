# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A small component as one safetensors file beside its manifest, in place of params/: the form to ship and to share.

DIR/<component>/manifest.json
DIR/<component>/params.safetensors    the same parameters by the same paths
"""

import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from uso_jax.common.errors import InputError
from uso_jax.weights import zarr_store

FILE = "params.safetensors"


class PackedArray:
    """One parameter in an open safetensors file; indexing and `part` read what they give."""

    def __init__(self, stored: safetensors.safe_open, path: str, struct):
        self.stored, self.path, self.shape, self.dtype = stored, path, tuple(struct.shape), np.dtype(struct.dtype)
        if tuple(stored.get_slice(path).get_shape()) != self.shape:
            raise ValueError(f"{path} contradicts the manifest")

    def part(self, index: tuple[slice, ...], dtype: Any = None) -> np.ndarray:
        """Give what slices select, cast to `dtype`."""
        return self.stored.get_tensor(self.path)[index].astype(dtype or self.dtype)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.part((slice(row, row + 1), *(slice(None),) * (len(self.shape) - 1)))[0]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.part((slice(None),) * len(self.shape), dtype)


def read(folder: pathlib.Path, tensors: Mapping[str, Any]) -> dict[str, PackedArray] | None:
    """Give the parameters of a component's folder, or None where they are not packed; `tensors` as its manifest has.

    Raises:
      ValueError: the file is damaged or contradicts the manifest.
    """
    if not (folder / FILE).is_file():
        return None
    try:
        stored = safetensors.safe_open(folder / FILE, "numpy")
        return {path: PackedArray(stored, path, struct) for path, struct in tensors.items()}
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error


def save(
    directory: str | pathlib.Path, component: str, params: Mapping[str, np.ndarray], manifest: Mapping[str, Any]
) -> int:
    """Write a component, replacing one that is there; give its bytes.

    Raises:
      InputError: it could not be written; an existing component is untouched.
    """
    folder = pathlib.Path(directory).absolute() / component
    file, temporary = folder / FILE, folder / f".{FILE}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({path: np.ascontiguousarray(value) for path, value in params.items()}, temporary)
        size = temporary.stat().st_size
        described = zarr_store.describe(component, params, manifest, {FILE: size})
        (folder / ".manifest.json").write_text(described, encoding="utf-8")
        shutil.copymode(folder / ".manifest.json", temporary)  # safetensors makes files for their owner only
        os.replace(temporary, file)
        os.replace(folder / ".manifest.json", folder / "manifest.json")
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"cannot write {folder}: {error}; free some space or choose another directory") from error
    return size
