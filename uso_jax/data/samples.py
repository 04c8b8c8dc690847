# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Items of the user's choice that are drawn while a model trains: a prompt, references, and no target."""

import dataclasses
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int32

from uso_jax.data.readers import FileTriplets
from uso_jax.data.readers.json_list import read_samples
from uso_jax.data.triplet import Triplet

_LARGE = 1 << 15
_BLANK = np.full((64, 64, 3), 240, np.uint8)


class Samples:
    """The items of a JSON list, as triplets whose target is blank.

    `sizes` tells the loader to make the largest square that it has.

    Raises:
      InputError: the list is invalid.
    """

    def __init__(self, path: str):
        self._items = FileTriplets("samples", path, read_samples(path))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: SupportsIndex) -> Triplet:
        return dataclasses.replace(self._items[index], target=_BLANK)

    def sizes(self) -> Int32[np.ndarray, "n 4"]:
        """Return (height, width) of every target and content image; targets are squares larger than any stage's."""
        found = self._items.sizes()
        found[:, :2] = _LARGE
        return found

    def digest(self) -> str:
        """Return a digest of all items."""
        return self._items.digest()
