# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which pair of images a person is asked about next.

Both images are of one group, so they differ by chance alone. Groups with the fewest verdicts come first, because a
scorer learns more from another request than from one more pair of the same. Within that, the order is random and
follows from the seed: were the pairs chosen by a scorer, its accuracy on them would say nothing about other images.
"""

import hashlib
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from uso_jax.data.rollout_store import Group


@dataclass(frozen=True)
class Pair:
    """Two images of a group, by key."""

    group: Group
    left: str
    right: str


def next_pair(groups: Sequence[Group], judged: Collection[frozenset[str]], seed: str) -> Pair | None:
    """Return the next pair that was not judged, or None if all were.

    Args:
      groups: all images.
      judged: pairs of keys that have a verdict.
      seed: of the order of pairs, and of which image is on the left.
    """
    verdicts_of: dict[str, int] = {}
    for pair in judged:
        for key in pair:
            verdicts_of[key] = verdicts_of.get(key, 0) + 1
    order = lambda group: (sum(verdicts_of.get(key, 0) for key in group.images), _random(seed, group.name))
    for group in sorted(groups, key=order):
        open_pairs = [pair for pair in _pairs(group) if frozenset(pair) not in judged]
        if open_pairs:
            first, second = min(open_pairs, key=lambda pair: _random(seed, *pair))
            swapped = _random(seed, "sides", first, second) % 2
            return Pair(group, second, first) if swapped else Pair(group, first, second)
    return None


def _pairs(group: Group) -> Iterator[tuple[str, str]]:
    """Yield all pairs of images that differ."""
    digest = lambda key: key.rpartition("/")[2]
    return ((a, b) for a, b in itertools.combinations(group.images, 2) if digest(a) != digest(b))


def _random(seed: str, *names: str) -> int:
    return int.from_bytes(hashlib.blake2b("\n".join((seed, *names)).encode(), digest_size=8).digest())
