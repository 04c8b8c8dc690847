# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Safetensors files: untrusted ones are checked before they are read, new ones are written in one pass.

The format: 8 bytes with the header's length, a JSON header {name: {dtype, shape, data_offsets}}, then the tensors'
bytes without gaps. The header is checked against the file before memory is allocated for tensors.
"""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.weights.files.arrays import Buffer, contiguous

MAX_HEADER = 32 * 2**20  # bytes; the largest real ones, with a training's notes in them, take a few MiB
MAX_TENSORS = 20_000  # released transformers have at most a few thousand
MAX_AXES = 8

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    **{f"{kind}{bits}": np.dtype(f"{kind.lower()}{bits // 8}") for kind in "UI" for bits in (8, 16, 32, 64)},
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# Files that are often passed by mistake, by their first bytes.
_OTHER_KINDS = {
    b"GGUF": "a GGUF file; take the safetensors release of the same weights",
    b"version https://git-lfs": "a Git LFS pointer, not the weights; fetch them with: git lfs pull",
    b"<": "a web page, not weights; the download probably needs a login",
}


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in its file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """A file with a checked header; tensors are read on request."""

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        try:
            if not self.path.is_file():
                problem = "is a directory" if self.path.is_dir() else "does not exist"
                raise InputError(f"{path} {problem}; pass a .safetensors file")
            self.size = self.path.stat().st_size
            self.tensors, self.metadata = self._header()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield every key and tensor in file order."""
        for key in sorted(self.tensors, key=lambda key: self.tensors[key].start):
            yield key, self.read(key)

    def read(self, key: str, start: int = 0, stop: int | None = None, buffer: Buffer | None = None) -> np.ndarray:
        """Read a tensor, or rows `start` to `stop` of its first axis, into a buffer if there is one."""
        tensor, rows = self.tensors[key], 1
        if tensor.shape:
            start, stop, _ = slice(start, stop).indices(tensor.shape[0])
            rows = max(stop - start, 0)
        row = math.prod(tensor.shape[1:])
        out = (buffer or np.empty)((rows * row,), tensor.dtype)
        # Not mapped: a mapped file of 24 GB would count as memory of this process page by page.
        view = memoryview(out.view(np.uint8)) if out.size else b""
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(tensor.start + start * row * tensor.dtype.itemsize)
                while view and (size := file.readinto(view)):
                    view = view[size:]
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error}); check its disk") from error
        if view:
            raise self._damaged("it became shorter while it was read")
        return out.reshape(rows, *tensor.shape[1:]) if tensor.shape else out.reshape(())

    def _header(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        with self.path.open("rb") as file:
            start = file.read(64)
            for magic, kind in _OTHER_KINDS.items():
                # These bytes could also be a header's length, but then the header's brace follows.
                if start.startswith(magic) and start[8:9] != b"{":
                    raise InputError(f"{self.path} is {kind}")
            length = int.from_bytes(start[:8], "little")
            if self.size < 8 or not 2 <= length <= min(self.size - 8, MAX_HEADER):
                raise self._damaged(f"a header of {length:,} bytes does not fit a file of {self.size:,} bytes")
            file.seek(8)
            raw = file.read(length)
        try:
            header = untrusted.json(raw, where="it", remedy="copy the file again", limit=MAX_HEADER)
        except InputError as error:
            raise self._damaged(f"its header is not valid JSON ({error})") from error
        if not isinstance(header, dict):
            raise self._damaged("its header is not a JSON object")
        if len(header) > MAX_TENSORS:
            raise self._damaged(f"it names {len(header):,} tensors; no network has more than {MAX_TENSORS:,}")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise self._damaged("__metadata__ must map strings to strings")
        begin = 8 + length
        tensors = {key: self._tensor(key, entry, begin) for key, entry in header.items()}
        expected = begin
        for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
            if tensor.start != expected:
                kind = "overlaps another tensor" if tensor.start < expected else "leaves a gap before it"
                raise self._damaged(f"tensor {key} {kind}")
            expected = tensor.stop
        if expected != self.size:
            raise self._damaged(f"{self.size - expected:,} bytes at the end belong to no tensor")
        return tensors, metadata

    def _tensor(self, key: str, entry, begin: int) -> Tensor:
        if not key.isprintable():
            raise self._damaged(f"tensor name {key!r} has control characters")
        try:
            name, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
            numbers = [*shape, start, stop]
        except (TypeError, KeyError, ValueError) as error:
            raise self._damaged(f"tensor {key} needs dtype, shape and two data_offsets") from error
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise self._damaged(f"tensor {key}: shape and offsets must be non-negative integers")
        if len(shape) > MAX_AXES or max(numbers) >= 2**63:
            raise self._damaged(f"tensor {key} has an absurd shape")
        if not isinstance(name, str) or name not in DTYPES:
            raise InputError(f"{self.path}: tensor {key} has dtype {name!r}; known are {', '.join(DTYPES)}")
        if not start <= stop <= self.size - begin:
            raise self._damaged(f"tensor {key} ends at byte {begin + stop:,} of {self.size:,}; the file is cut short")
        if math.prod(shape) * DTYPES[name].itemsize != stop - start:
            raise self._damaged(f"tensor {key}: {name} {shape} does not take {stop - start:,} bytes")
        return Tensor(DTYPES[name], tuple(shape), begin + start, begin + stop)

    def _damaged(self, problem: str) -> InputError:
        return InputError(f"{self.path} is not a valid safetensors file: {problem}; download or copy it again")


def write_safetensors(
    path: pathlib.Path,
    layout: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    tensors: Iterable[np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Write a file under a temporary name and rename it when complete.

    Args:
      path: the file.
      layout: dtype and shape of every tensor by name, in the file's order; wide dtypes first keeps tensors aligned.
      tensors: the tensors in that order, which need not all be in memory at once.
      metadata: free text for the header.

    Raises:
      InputError: it could not be written; an existing file is untouched.
    """
    header: dict = {"__metadata__": dict(metadata)}
    offset = 0
    for key, (dtype, shape) in layout.items():
        stop = offset + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            for (key, (dtype, shape)), tensor in zip(layout.items(), tensors, strict=True):
                assert tensor.dtype == dtype and tensor.shape == shape, key
                file.write(contiguous(tensor).reshape(-1).view(np.uint8))
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another place with --to") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
