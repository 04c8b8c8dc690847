# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Recognise which source reads a user's data, by its path."""

import os

from uso_jax.common.errors import InputError
from uso_jax.data.readers import Item, get_reader
from uso_jax.data.storage import archives, urls

_ENDINGS = {".json": "json", ".jsonl": "json", ".tar": "webdataset", ".parquet": "parquet", ".zip": "folder"}


def recognise(path: str) -> str:
    """Return the name of the reader of a path.

    Args:
      path: a JSON list, an archive, a table, or a folder of shards, tables or images.

    Raises:
      InputError: it does not exist, or its ending is unknown.
    """
    if urls.is_folder(path):
        if archives.find_part(path, "target") is not None:
            return "folder"
        endings = {_ending(name) for name in archives.list_members(path)}
        return _ENDINGS[next((ending for ending in (".tar", ".parquet") if ending in endings), ".zip")]
    if not urls.exists(path):
        raise InputError(f"{path} does not exist: correct --data, the path of your images")
    if _ending(path) not in _ENDINGS:
        raise InputError(f"{path} is no folder and does not end in {', '.join(_ENDINGS)}: correct --data")
    return _ENDINGS[_ending(path)]


def count(kind: str, path: str) -> int:
    """Return the number of triplets that a reader finds, if those without a prompt are given one."""
    caption = {"caption": "-"} if kind == "folder" else {}
    return sum(isinstance(item, Item) for item in get_reader(kind)(path, **caption))


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()
