# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A small component as one safetensors file beside its manifest, in place of params/: the form to ship and to share.

DIR/<component>/manifest.json
DIR/<component>/params.safetensors    the same parameters by the same paths
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from uso_jax import weights_files
from uso_jax.errors import InputError

FILE = "params.safetensors"


class PackedArray:
    """One parameter in a safetensors file; indexing and `part` read what they give."""

    def __init__(self, file: pathlib.Path, path: str, struct):
        self.file, self.path, self.shape, self.dtype = file, path, tuple(struct.shape), np.dtype(struct.dtype)
        with safetensors.safe_open(self.file, "numpy") as stored:
            found = stored.get_slice(path)
            if tuple(found.get_shape()) != self.shape:
                raise ValueError(f"{path} in {file} contradicts the manifest")

    def part(self, index: tuple[slice, ...], dtype: Any = None) -> np.ndarray:
        """Give what slices select, cast to `dtype`."""
        with safetensors.safe_open(self.file, "numpy") as stored:
            return stored.get_tensor(self.path)[index].astype(dtype or self.dtype)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.part((slice(row, row + 1), *(slice(None),) * (len(self.shape) - 1)))[0]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.part((slice(None),) * len(self.shape), dtype)


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
        described = weights_files.describe(component, params, manifest, {FILE: size})
        (folder / ".manifest.json").write_text(described, encoding="utf-8")
        os.replace(temporary, file)
        os.replace(folder / ".manifest.json", folder / "manifest.json")
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"cannot write {folder}: {error}; free some space or choose another directory") from error
    return size
