# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How a component's parameters lie on disk: plain safetensors files beside its manifest.

DIR/<component>/params.safetensors                     a component of at most SHARD_BYTES
DIR/<component>/params-00002-of-00013.safetensors      a larger one; a parameter lies in one file
DIR/<component>/params.safetensors.index.json          with shards: the file of every parameter, as on the hub

A safetensors file has 8 bytes with the length of its header, the header (JSON: name, dtype, shape and byte range of
every tensor), and the bytes of the tensors without gaps, in row-major order.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import jax
import ml_dtypes
import numpy as np

from uso_jax.common import schema, untrusted
from uso_jax.weights.stored_array import StoredArray

FILE = "params.safetensors"
INDEX = f"{FILE}.index.json"
SHARD_BYTES = 2 * 2**30
CHUNK_BYTES = 64 * 2**20  # mapped at a time

DTYPES: Mapping[np.dtype, str] = {
    np.dtype(np.int8): "I8",
    np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.float32): "F32",
    np.dtype(np.float64): "F64",
}
Structs = Mapping[str, jax.ShapeDtypeStruct]


class _Entry(TypedDict):
    """A tensor in the header of a file."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class Extent:
    """The bytes of one parameter: where they start in a file, and how many there are."""

    file: pathlib.Path
    start: int
    size: int


# ---------------------------------------------------------------------------------------------------- reading


def list_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """List the safetensors files of a component's folder."""
    if (folder / FILE).is_file():
        return [folder / FILE]
    return sorted(folder.glob("params-*-of-*.safetensors"))


def read_extents(folder: pathlib.Path, tensors: Structs) -> dict[str, Extent]:
    """Return where every parameter of a component's folder lies.

    Args:
      folder: DIR/<component>.
      tensors: shape and dtype of every parameter, as the manifest says.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is damaged or contradicts the manifest.
    """
    found = {}
    for file in list_files(folder):
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError(f"{file} has no sound header")
            if length > untrusted.LIMIT:
                raise ValueError(f"{file} has a header of {length} bytes; the limit is {untrusted.LIMIT}")
            header = untrusted.json(stream.read(length), dict[str, Any], f"the header of {file}")
        for path, entry in header.items():
            if path == "__metadata__":
                continue
            entry = schema.converted(entry, _Entry, f"{path} in {file}")
            start, stop = entry["data_offsets"]
            if path not in tensors:
                raise ValueError(f"{path} in {file} is not in the manifest")
            struct = tensors[path]
            if (
                (entry["dtype"], entry["shape"]) != (DTYPES[np.dtype(struct.dtype)], list(struct.shape))
                or stop - start != _bytes(struct)
                or not 0 <= start <= stop <= size - 8 - length
            ):
                raise ValueError(f"{path} in {file} contradicts the manifest")
            found[path] = Extent(file, 8 + length + start, stop - start)
    if missing := tensors.keys() - found.keys():
        raise ValueError(f"{len(missing)} parameters are missing, among them {min(missing)}")
    return found


def open_safetensors(folder: pathlib.Path, tensors: Structs) -> dict[str, StoredArray]:
    """Return the parameters of a component's folder; arguments and errors are those of `read_extents`."""
    extents = read_extents(folder, tensors)
    return {path: _open_array(struct, extents[path]) for path, struct in tensors.items()}


def _open_array(struct: jax.ShapeDtypeStruct, extent: Extent) -> StoredArray:
    row = _row_bytes(struct)
    rows = max(CHUNK_BYTES // row, 1) if row else 1
    return StoredArray(struct, rows, lambda number: (extent.file, extent.start + number * rows * row))


# ---------------------------------------------------------------------------------------------------- layout


def plan_files(structs: Structs) -> dict[str, list[str]]:
    """Divide parameters into files: file name -> paths in the order of the file.

    Wide dtypes come first, so that every parameter starts at a multiple of its item size.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for path in sorted(structs, key=lambda path: -np.dtype(structs[path].dtype).itemsize):
        if size and size + _bytes(structs[path]) > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(path)
        size += _bytes(structs[path])
    if len(shards) == 1:
        return {FILE: shards[0]}
    return {f"params-{i:05d}-of-{len(shards):05d}.safetensors": paths for i, paths in enumerate(shards, 1)}


def create_file(file: pathlib.Path, structs: Structs) -> None:
    """Write the header of a file and reserve the bytes of its parameters, in the order of `structs`."""
    header, offset = {}, 0
    for path, struct in structs.items():
        stop = offset + _bytes(struct)
        dtype = DTYPES[np.dtype(struct.dtype)]
        header[path] = {"dtype": dtype, "shape": list(struct.shape), "data_offsets": [offset, stop]}
        offset = stop
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with file.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        stream.truncate(8 + len(raw) + offset)


def index_text(files: Mapping[str, list[str]], structs: Structs) -> str:
    """Return the text of the index of several files, as the hub's libraries read it."""
    record = {
        "metadata": {"total_size": sum(map(_bytes, structs.values()))},
        "weight_map": {path: name for name, paths in files.items() for path in paths},
    }
    return json.dumps(record, indent=1) + "\n"


def _row_bytes(struct: jax.ShapeDtypeStruct) -> int:
    return math.prod(struct.shape[1:]) * np.dtype(struct.dtype).itemsize


def _bytes(struct: jax.ShapeDtypeStruct) -> int:
    return math.prod(struct.shape) * np.dtype(struct.dtype).itemsize
