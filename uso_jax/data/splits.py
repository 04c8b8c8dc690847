# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Splits of the sources that draw triplets: what of a triplet training never sees."""

from collections.abc import Mapping
from typing import Any

from uso_jax.common.errors import InputError

SPLITS = ("train", "heldout_subjects", "heldout_styles", "heldout_families", "heldout")
OLD_NAMES = {"heldout_style": "heldout_styles"}  # of emoji data, in configurations and data sets that users have


def check_split(source: str, split: str) -> str:
    """Return the name of a split in SPLITS; an old name is replaced.

    Raises:
      InputError: there is no such split.
    """
    name = OLD_NAMES.get(split, split)
    if name not in SPLITS:
        raise InputError(f"{source} data: unknown split {split!r}; use one of {', '.join(SPLITS)}.")
    return name


def has_split(spec: Mapping[str, Any], split: str) -> bool:
    """Return whether a source has a split, given its arguments: artists' emoji have no held-out style families."""
    if spec["name"] == "emoji" and split == "heldout_families":
        looks = spec.get("looks")
        return looks is None or looks.get("drawn", 0) > 0
    return True
