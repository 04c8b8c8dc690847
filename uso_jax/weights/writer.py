# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Write a component piece by piece, in any order; an interrupted writer continues where it stopped.

All pieces go to their final places in the files of a hidden folder; a journal in it says which are there. The folder
gets its name when it is complete.
"""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from uso_jax.common import locks
from uso_jax.common.errors import InputError
from uso_jax.weights import integrity, safetensors_store
from uso_jax.weights.manifest_text import FORMAT, format_struct, manifest_text
from uso_jax.weights.safetensors_store import Extent, Structs


class Writer:
    """Write a component piece by piece; a later writer of the same thing keeps what an interrupted one has written.

    Used in a `with` statement. An error removes everything that was written, except for an interruption from the
    keyboard: after that, as after a kill, the same call continues.

    Args:
      directory: the weights directory, made if it does not exist.
      component: the folder's name.
      structs: shape and dtype of every parameter.
      origin: what the bytes are made from, in JSON terms; None: never continue another writer's work.
    """

    def __init__(self, directory: str | pathlib.Path, component: str, structs: Structs, origin: Any = None):
        self.target = pathlib.Path(directory).absolute() / component
        self.folder = self.target.with_name(f".{component}.partial")
        self.component, self.structs = component, structs
        self._files = safetensors_store.plan_files(structs)
        tensors = {path: format_struct(s) for path, s in structs.items()}
        self._origin = json.dumps([FORMAT, tensors, list(self._files), _boot(), origin], sort_keys=True)
        self._resumable = origin is not None
        self._extents: dict[str, Extent] = {}
        self._written: dict[tuple[str, int], int] = {}  # path and first row of a piece -> its numbers
        self._lock = contextlib.ExitStack()
        self._owns_folder = False

    def __enter__(self) -> "Writer":
        try:
            self._lock.enter_context(locks.hold(self.target.parent, self.component))
            self._owns_folder = True
            origin = self.folder / "origin.json"
            if self._resumable and origin.is_file() and origin.read_text(encoding="utf-8") == self._origin:
                self._read_journal()
            else:
                self._create_files()
                origin.write_text(self._origin, encoding="utf-8")  # last: it says that the files are there
            self._extents = safetensors_store.read_extents(self.folder, self.structs)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def has(self, path: str, row: int) -> bool:
        """Return whether the piece of a parameter that starts at a row is already written."""
        return (path, row) in self._written

    def write(self, path: str, row: int, array: np.ndarray) -> None:
        """Write a piece of a parameter: whole rows of its first axis, from `row` on."""
        struct = self.structs[path]
        assert array.dtype == struct.dtype and array.shape[1:] == struct.shape[1:], path
        extent = self._extents[path]
        start = row * (extent.size // struct.shape[0] if struct.shape and struct.shape[0] else 0)
        assert start + array.nbytes <= extent.size, path
        with extent.file.open("r+b", buffering=0) as stream:
            stream.seek(extent.start + start)
            view = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
            while view:
                view = view[stream.write(view) :]
        with self._journal.open("a", encoding="utf-8") as stream:
            stream.write(f"{row} {array.size} {path}\n")
        self._written[path, row] = array.size

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest and give the folder its name."""
        assert sum(self._written.values()) == sum(s.size for s in self.structs.values()), "a piece was not written"
        if len(self._files) > 1:
            text = safetensors_store.index_text(self._files, self.structs)
            (self.folder / safetensors_store.INDEX).write_text(text, encoding="utf-8")
        sizes = {path.name: path.stat().st_size for path in sorted(self.folder.glob("params*"))}
        hashes = integrity.file_hashes(self.folder, sizes)
        text = manifest_text(self.component, self.structs, manifest, sizes, hashes)
        (self.folder / "manifest.json").write_text(text, encoding="utf-8")
        (self.folder / "origin.json").unlink()
        self._journal.unlink(missing_ok=True)
        old = self.target.with_name(f".{self.component}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.target.exists():
            self.target.rename(old)
        self.folder.rename(self.target)
        shutil.rmtree(old, ignore_errors=True)

    def __exit__(self, kind, error, trace) -> None:
        if self._owns_folder and error is not None and not (isinstance(error, KeyboardInterrupt) and self._resumable):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()
        if isinstance(error, (OSError, ValueError)) and not isinstance(error, InputError):
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:200]
            raise InputError(
                f"cannot write {self.target}: {reason}; free some space or choose another directory"
            ) from error

    # ------------------------------------------------------------------------------------------------ details

    @property
    def _journal(self) -> pathlib.Path:
        return self.folder / "written.txt"

    def _create_files(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for name, paths in self._files.items():
            safetensors_store.create_file(self.folder / name, {path: self.structs[path] for path in paths})

    def _read_journal(self) -> None:
        text = self._journal.read_text(encoding="utf-8") if self._journal.exists() else ""
        lines = text[: text.rfind("\n") + 1]  # a kill may have cut the last one
        if lines != text:
            os.truncate(self._journal, len(lines.encode()))
        for line in lines.splitlines():
            row, size, path = line.split(" ", 2)
            self._written[path, int(row)] = int(size)


def _boot() -> str:
    """Identify this start of the machine: a power failure may lose bytes of pieces that the journal has."""
    file = pathlib.Path("/proc/sys/kernel/random/boot_id")
    return file.read_text(encoding="ascii").strip() if file.is_file() else ""
