# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Readers of triplets from files, one per schema: those of public data sets and plain ones of this project.

A reader is a generator function `read_NAME(path, **options)`. It yields an `Item` for every triplet and a `LeftOut` for
every row that it skips, and raises an InputError if the file as a whole is invalid. `FileTriplets` turns it into a
source.
"""

import importlib
from collections.abc import Callable

from uso_jax.data.readers.source import FileTriplets, Item, LeftOut

__all__ = ["NAMES", "FileTriplets", "Item", "LeftOut", "get_reader"]

NAMES = (
    "json",
    "uno",
    "uso_eval",
    "uno_1m",
    "subjects200k",
    "omnistyle",
    "syncd",
    "stylebooth",
    "webdataset",
    "folder",
    "parquet",
)
_MODULES = {"json": "json_list", "uno": "json_list", "uso_eval": "json_list"}


def get_reader(name: str) -> Callable:
    """Return the reader of a name. Its module and dependencies are imported here."""
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, name)}")
    return getattr(module, f"read_{name}")
