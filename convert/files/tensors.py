# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Open weight files of every kind: safetensors, GGUF, pickled torch files, and indices of shards."""

import pathlib
from collections.abc import Sequence
from typing import TypedDict

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.weights.files.safetensors_file import SafetensorsFile
from uso_jax.weights.files.tensors import File

from .gguf_file import MAGIC as GGUF
from .gguf_file import GgufFile
from .torch_file import MAGIC, TorchFile


def open_files(paths: Sequence[str | pathlib.Path]) -> list[File]:
    """Open weight files by their content; an index of shards is replaced by the shards it lists.

    Raises:
      InputError: a file is missing, damaged or of another kind.
    """
    return [file for path in paths for file in _open(pathlib.Path(path))]


def _open(path: pathlib.Path) -> list[File]:
    try:
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(9)
            if start.lstrip()[:1] == b"{":
                return [_open_one(shard) for shard in _shards(path)]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    return [_open_one(path)]


def _open_one(path: pathlib.Path) -> File:
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(9)
        if start.startswith(GGUF) and start[8:9] != b"{":
            return GgufFile(path)
        # The same bytes could be the length of a safetensors header, but then the header's brace follows.
        if start.startswith(MAGIC) and start[8:9] != b"{":
            return TorchFile(path)
    return SafetensorsFile(path)


class _Index(TypedDict):
    weight_map: dict[str, str]


def _shards(path: pathlib.Path) -> list[pathlib.Path]:
    index = untrusted.json(path, _Index, remedy="it is neither a weights file nor an index of shards")
    names = sorted(set(index["weight_map"].values()))
    for name in names:
        if pathlib.PurePath(name).name != name:
            raise InputError(f"{path}: {name!r} is not the name of a file beside the index")
        if not (path.parent / name).is_file():
            raise InputError(f"{path} lists {name}, which is not beside it; download the missing shard")
    return [path.parent / name for name in names]
