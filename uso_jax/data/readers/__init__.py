# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Readers of triplets in files: each turns one public schema, or a plain one of this project's, into items.

A reader is a generator function of a path (or URL) and options. It gives an `Item` for every triplet and a `LeftOut`
for every row that it does not use; what makes the whole file useless is an InputError. `FileTriplets` does the rest.
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
    """Give the reader of a name; its module, and what that needs, is imported only now."""
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, name)}")
    return getattr(module, f"read_{name}")
