# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The base of the sources that draw their triplets on demand."""

import abc
import operator
from collections.abc import Mapping
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int32

from uso_jax.data.drawings import sampling
from uso_jax.data.splits import SPLITS, check_split
from uso_jax.data.triplet import TASK_CONDITIONS, Triplet


class DrawnSource(abc.ABC):
    """Random access to `length` triplets. Example i depends only on (seed, split, i).

    Args:
      name: of the source, for error messages.
      split: one of SPLITS, or an old name of one.
      seed: of all random choices.
      size: side of the images in pixels.
      length: number of triplets.
      num_styles: style images per example.
      tasks: sampling weights by task; None means style_subject only.
      shares: probabilities by name, which are validated.

    Raises:
      InputError: an argument is invalid.
    """

    def __init__(
        self,
        name: str,
        *,
        split: str,
        seed: int,
        size: int,
        length: int,
        num_styles: int,
        tasks: Mapping[str, float | int] | None,
        shares: Mapping[str, float | int],
    ):
        where, split = f"{name} data", check_split(name, split)
        sampling.check_arguments(where, size=size, length=length, num_styles=num_styles, shares=shares)
        self.split, self.seed, self.size, self.length, self.num_styles = split, seed, size, length, num_styles
        self.heldout_subjects = split in ("heldout_subjects", "heldout")
        self.heldout_styles = split in ("heldout_styles", "heldout")
        self.heldout_families = split == "heldout_families"
        tasks = {"style_subject": 1.0} if tasks is None else tasks
        self._tasks = sampling.edges(where, "tasks", tasks, tuple(TASK_CONDITIONS))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: SupportsIndex) -> Triplet:
        index = operator.index(index)
        if not 0 <= index < self.length:
            raise IndexError(f"example {index} of {self.length}")
        return self._draw(index, np.random.default_rng([self.seed, SPLITS.index(self.split), index]))

    @abc.abstractmethod
    def _draw(self, index: int, rng: np.random.Generator) -> Triplet:
        """Draw example `index` with random numbers from `rng` only."""

    def sizes(self) -> Int32[np.ndarray, "n 4"]:
        """Return the (height, width) of targets and content images, which are all equal."""
        return np.broadcast_to(np.int32(self.size), (self.length, 4))
