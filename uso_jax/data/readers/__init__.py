# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Readers of triplets from files, one per schema: those of public data sets and plain ones of this project.

A reader is a generator function `read_NAME(path, **options)`. It yields an `Item`, or a `Packed` one, for every triplet
and a `LeftOut` for every row that it skips, and raises an InputError if the file as a whole is invalid. `FileTriplets`
turns it into a source.
"""

import importlib
from collections.abc import Callable

from uso_jax.data.readers.source import FileTriplets, Item, LeftOut

__all__ = ["READERS", "FileTriplets", "Item", "LeftOut", "get_reader"]

READERS: dict[str, str | Callable] = {  # name -> module and function, imported when it is used; or the function
    "json": "json_list.read_json",
    "uno": "json_list.read_uno",
    "uso_eval": "json_list.read_uso_eval",
    "uno_1m": "uno_1m.read_uno_1m",
    "subjects200k": "subjects200k.read_subjects200k",
    "omnistyle": "omnistyle.read_omnistyle",
    "syncd": "syncd.read_syncd",
    "stylebooth": "stylebooth.read_stylebooth",
    "webdataset": "webdataset.read_webdataset",
    "folder": "folder.read_folder",
    "parquet": "parquet.read_parquet",
}


def get_reader(name: str) -> Callable:
    """Return the reader of a name. Its module, with the packages that it needs, is imported now."""
    found = READERS[name]
    if not isinstance(found, str):
        return found
    module, function = found.split(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), function)
