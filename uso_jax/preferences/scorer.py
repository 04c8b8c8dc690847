# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A fitted scorer as a file of plain JSON: weights of the features of an image, and what they were fitted to.

The features are those of rewards that are cosines of two unit vectors (uso_jax.training.preference): for each reward
the cosine itself, the products that it is the sum of, and the image's vector, 1 + 2 d numbers.
"""

import dataclasses
import json
import math
import pathlib
from dataclasses import dataclass

from uso_jax.common import atomic_files, untrusted
from uso_jax.common.errors import InputError

_FORMAT = "uso_jax preference 1"
_LARGEST = 1 << 25  # bytes


@dataclass(frozen=True)
class Scorer:
    """What one file holds.

    Attributes:
      rewards: d of each reward's vectors, by name and in the order of the features.
      weights: of all features.
      offset: subtracted from the weighted sum, so that 0 is the mean image that was judged.
      networks: fingerprint of each network of the rewards, by component.
      pairs: number of those that the weights were fitted to, and of those that were held out.
      accuracy: share of the held-out pairs on which it agrees with the person.
    """

    rewards: dict[str, int]
    weights: list[float]
    offset: float
    networks: dict[str, str]
    pairs: tuple[int, int]
    accuracy: float
    format: str = _FORMAT

    def write(self, path: pathlib.Path) -> None:
        """Write the file, which must not exist: a run that reads it may continue.

        Raises:
          InputError: it exists, or cannot be written.
        """
        if path.exists():
            raise InputError(f"{path} exists; choose another --to, or remove it")
        with atomic_files.explained(path, "choose another --to"):
            atomic_files.write_file(path, json.dumps(dataclasses.asdict(self)) + "\n")

    @classmethod
    def read(cls, path: pathlib.Path) -> "Scorer":
        """Read a file.

        Raises:
          InputError: it is missing or damaged.
        """
        again = "fit the scorer again (docs/policy.md)"
        missing = f"{path} does not exist: fit a scorer with uso-prefer, or correct the path"
        scorer = untrusted.json(path, cls, missing=missing, remedy=again, limit=_LARGEST)
        if scorer.format != _FORMAT:
            raise InputError(f"{path} has the format {scorer.format[:40]!r}, not {_FORMAT!r}; {again}")
        wanted = sum(map(size, scorer.rewards.values()))
        if not scorer.rewards or min(scorer.rewards.values()) < 1 or len(scorer.weights) != wanted:
            raise InputError(f"{path} is damaged: it has {len(scorer.weights)} weights for {wanted} features; {again}")
        if not all(map(math.isfinite, (*scorer.weights, scorer.offset))):
            raise InputError(f"{path} is damaged: a weight is not finite; {again}")
        return scorer


def blocks(width: int) -> tuple[int, int, int]:
    """Return the sizes of the blocks of features of a reward whose vectors have this width."""
    return 1, width, width


def size(width: int) -> int:
    """Return the number of features of a reward whose vectors have this width."""
    return sum(blocks(width))
