# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How a component's parameters lie on disk: zarr arrays without compression, described for Orbax.

    params/<path>/.zarray    shape, dtype and chunks
    params/<path>/3.0.0      the bytes of chunk 3, counted along the first axis: the others are never cut
    params/_METADATA         the names, for Orbax

A chunk that is one whole matrix may be stored by columns ("order": "F"), which is how torch has its linear layers: an
import then copies bytes, and the transposition is left to the threads that load.

A chunk file is written under another name and renamed, so one that can be seen is whole; that is all an interrupted
writer needs to go on.
"""

import contextlib
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import uso_jax
from uso_jax.common.errors import InputError

FORMAT = 2
CHUNK_BYTES = 64 * 2**20

_STRIP = 32  # columns of a matrix at a time when it is transposed: several times as fast as all at once
_ZARR = {
    **{np.dtype(getattr(ml_dtypes, name)): name for name in ("bfloat16", "float8_e4m3fn")},
    **{np.dtype(f"f{n}"): f"<f{n}" for n in (2, 4, 8)},
    np.dtype(np.int8): "|i1",
}
Structs = Mapping[str, jax.ShapeDtypeStruct]


def struct(text: str) -> jax.ShapeDtypeStruct:
    """Read `dtype[shape]` as manifests write it."""
    if (match := re.fullmatch(r"(\w+)\[((?:\d+(?:,\d+)*)?)\]", text)) is None:
        raise ValueError(f"{text!r} is not dtype[shape]")
    return jax.ShapeDtypeStruct(tuple(map(int, match[2].split(","))) if match[2] else (), jnp.dtype(match[1]))


def text(struct: jax.ShapeDtypeStruct) -> str:
    """Undo `struct`."""
    return f"{struct.dtype}[{','.join(map(str, struct.shape))}]"


def chunk_rows(shape: tuple[int, ...], itemsize: int) -> int:
    """Give how many rows of the first axis lie in one file: as many as fit, and all files hold the same number."""
    row = max(math.prod(shape[1:]) * itemsize, 1)
    return max((n for n in range(1, shape[0] + 1) if shape[0] % n == 0 and n * row <= CHUNK_BYTES), default=1)


def _chunk_name(number: int, ndim: int) -> str:
    return ".".join([str(number), *["0"] * (ndim - 1)])


def copy(out: np.ndarray, value: np.ndarray) -> None:
    """Copy and cast; matrices in strips, because a transposed one read row by row misses the cache each time."""
    if out.ndim == 3:
        for row, matrix in zip(out, value, strict=True):
            copy(row, matrix)
        return
    if out.dtype == value.dtype and out.dtype.itemsize == 2:
        out, value = out.view(np.uint16), value.view(np.uint16)  # numpy copies its own dtypes faster
    with np.errstate(over="ignore", invalid="ignore"):
        if out.ndim != 2 or value.flags.c_contiguous:
            out[...] = value
            return
        for start in range(0, out.shape[1], _STRIP):
            out[:, start : start + _STRIP] = value[:, start : start + _STRIP]


# ---------------------------------------------------------------------------------------------------- reading


class StoredArray:
    """One parameter on disk; indexing and `part` read what they give."""

    def __init__(self, folder: pathlib.Path, struct: jax.ShapeDtypeStruct):
        self.folder, self.shape, self.dtype = folder, tuple(struct.shape), np.dtype(struct.dtype)
        header = json.loads((folder / ".zarray").read_text(encoding="utf-8"))
        self.rows = header["chunks"][0] if self.shape else 1
        self._order = header["order"]
        if (
            header["shape"] != list(self.shape)
            or header["chunks"][1:] != list(self.shape[1:])
            or self.rows < 1
            or self._order not in "CF"
        ):
            raise ValueError(f"{folder / '.zarray'} contradicts the manifest")

    def part(self, index: tuple[slice, ...], dtype: Any = None) -> np.ndarray:
        """Give what slices select, cast to `dtype`."""
        bounds = [s.indices(size)[:2] for s, size in zip(index, self.shape, strict=True)]
        out = np.empty([stop - start for start, stop in bounds], dtype or self.dtype)
        if not self.shape:
            out[...] = self._chunk(0)[0]
            return out
        (start, stop), inner = bounds[0], tuple(slice(*b) for b in bounds[1:])
        for number in range(start // self.rows, -(-stop // self.rows)):
            first = number * self.rows
            low, high = max(start, first), min(stop, first + self.rows)
            copy(out[low - start : high - start], self._chunk(number)[(slice(low - first, high - first), *inner)])
        return out

    def _chunk(self, number: int) -> np.ndarray:
        # Mapped only while it is copied from, so that pages of large files do not pile up.
        path = self.folder / _chunk_name(number, max(len(self.shape), 1))
        return np.memmap(path, self.dtype, "r", shape=(self.rows, *self.shape[1:]), order=self._order)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.part((slice(row, row + 1), *(slice(None),) * (len(self.shape) - 1)))[0]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.part((slice(None),) * len(self.shape), dtype)


# ---------------------------------------------------------------------------------------------------- writing


def describe(component: str, structs: Mapping[str, Any], manifest: Mapping[str, Any], files: Mapping[str, int]) -> str:
    """Give the text of manifest.json: what the caller says, and what follows from the parameters and their files."""
    dtypes = sorted({str(s.dtype) for s in structs.values()})
    record = {
        "format": FORMAT,
        "component": component,
        "family": "",
        "uso_jax": uso_jax.__version__,
        "dtype": dtypes[0] if len(dtypes) == 1 else "mixed",
        "parameters": sum(s.size for s in structs.values()),
        "sources": [],
        **manifest,
        "tensors": {path: text(s) for path, s in structs.items()},
        "files": files,
    }
    return json.dumps(record, indent=1) + "\n"


class Writer:
    """Write a component chunk by chunk; what an interrupted writer of the same thing has done is kept.

    With `with`: an error removes everything again, except for an interruption from the keyboard, after which, as after
    a kill, the same call goes on where it stopped.

    Args:
      directory: the weights directory, made if it does not exist.
      component: the folder's name.
      structs: shapes and dtypes of its parameters.
      origin: what the bytes are made from, in JSON terms; None: never go on from another writer's chunks.
      by_columns: parameters to store by columns where a chunk is one whole matrix.
      rows: how many rows of the first axis make a chunk, where that is not left to `chunk_rows`.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        component: str,
        structs: Structs,
        origin: Any = None,
        by_columns: Collection[str] = (),
        rows: Mapping[str, int] | None = None,
    ):
        self.target = pathlib.Path(directory).absolute() / component
        self.folder = self.target.with_name(f".{component}.partial")
        self.component, self.structs = component, structs
        self.rows = {path: chunk_rows(s.shape, s.dtype.itemsize) if s.shape else 1 for path, s in structs.items()}
        self.rows |= rows or {}
        self.by_columns = {path for path in by_columns if self._is_matrix(path)}
        self._origin = json.dumps([FORMAT, self._tensors(), origin], sort_keys=True)
        self._resumable = origin is not None
        self._lock = None
        self._owns_folder = False
        self._made: list[pathlib.Path] = []

    def __enter__(self) -> "Writer":
        self._made = [path for path in self.target.parents if not path.exists()]
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._owns_folder = True
            origin = self.folder / "origin.json"
            if not (self._resumable and origin.is_file() and origin.read_text(encoding="utf-8") == self._origin):
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir()
                origin.write_text(self._origin, encoding="utf-8")
            for path in self.structs:
                self._describe(path)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def has(self, path: str, row: int) -> bool:
        """Tell whether the chunk that starts at a row is already there."""
        file, size = self._file(path, row), self.rows[path] * self._row_bytes(path)
        return file.is_file() and file.stat().st_size == size

    def write(self, path: str, row: int, array: np.ndarray) -> None:
        """Write whole chunks from a row of the first axis on."""
        struct = self.structs[path]
        assert array.dtype == struct.dtype and array.shape[1:] == struct.shape[1:], path
        array = array.reshape(-1, *struct.shape[1:])
        for start in range(0, len(array), self.rows[path]):
            chunk = array[start : start + self.rows[path]]
            chunk = np.ascontiguousarray(chunk.T if path in self.by_columns else chunk)
            file = self._file(path, row + start)
            temporary = file.with_name(".tmp")
            with temporary.open("wb") as stream:
                stream.write(chunk.reshape(-1).view(np.uint8))
            temporary.replace(file)

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Describe what has been written and move it to its place."""
        self._write_metadata()
        files = (path for path in sorted((self.folder / "params").rglob("*")) if path.is_file() and path.name != ".tmp")
        sizes = {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in files}
        described = describe(self.component, self.structs, manifest, sizes)
        (self.folder / "manifest.json").write_text(described, encoding="utf-8")
        (self.folder / "origin.json").unlink()
        old = self.target.with_name(f".{self.component}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.target.exists():
            self.target.rename(old)
        self.folder.rename(self.target)
        shutil.rmtree(old, ignore_errors=True)

    def __exit__(self, kind, error, trace) -> None:
        if self._owns_folder and error is not None and not (isinstance(error, KeyboardInterrupt) and self._resumable):
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
            with contextlib.suppress(OSError):
                self._lock_path.unlink()
        for path in self._made:
            with contextlib.suppress(OSError):
                path.rmdir()
        if isinstance(error, (OSError, ValueError)) and not isinstance(error, InputError):
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:200]
            raise InputError(
                f"cannot write {self.target}: {reason}; free some space or choose another directory"
            ) from error

    # ------------------------------------------------------------------------------------------------ details

    @property
    def _lock_path(self) -> pathlib.Path:
        return self.target.with_name(f".{self.component}.lock")

    def _take_lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows: two imports into one place at a time are the user's affair
            return
        lock = self._lock_path.open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise InputError(f"another process is writing {self.target}; wait for it to end") from error
        self._lock = lock

    def _tensors(self) -> dict[str, str]:
        return {path: text(s) for path, s in self.structs.items()}

    def _is_matrix(self, path: str) -> bool:
        shape = self.structs[path].shape
        return (len(shape) == 3 and self.rows[path] == 1) or (len(shape) == 2 and self.rows[path] == shape[0])

    def _row_bytes(self, path: str) -> int:
        return math.prod(self.structs[path].shape[1:]) * self.structs[path].dtype.itemsize

    def _file(self, path: str, row: int) -> pathlib.Path:
        name = _chunk_name(row // self.rows[path], max(len(self.structs[path].shape), 1))
        return self.folder / "params" / path / name

    def _describe(self, path: str) -> None:
        shape = list(self.structs[path].shape)
        header = {
            "chunks": [self.rows[path], *shape[1:]] if shape else [],
            "compressor": None,
            "dimension_separator": ".",
            "dtype": _ZARR[np.dtype(self.structs[path].dtype)],
            "fill_value": None,
            "filters": None,
            "order": "F" if path in self.by_columns else "C",
            "shape": shape,
            "zarr_format": 2,
        }
        folder = self.folder / "params" / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".zarray").write_text(json.dumps(header, separators=(",", ":")), encoding="utf-8")

    def _write_metadata(self) -> None:
        tree = {
            str((path,)): {
                "key_metadata": [{"key": path, "key_type": 2}],
                "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
            }
            for path in self.structs
        }
        record = {
            "tree_metadata": tree,
            "use_ocdbt": False,
            "use_zarr3": False,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": None,
        }
        (self.folder / "params" / "_METADATA").write_text(json.dumps(record), encoding="utf-8")
        for name in os.listdir(self.folder / "params"):
            assert not name.startswith("."), name
