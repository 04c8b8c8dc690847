# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Argument checks and weighted choices shared by the sources that draw their triplets.

`where` names the source in error messages.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from uso_jax.common.errors import InputError


def check_arguments(where: str, *, size: int, length: int, num_styles: int, shares: Mapping[str, float | int]) -> None:
    """Raise an InputError if a size or number is too small or a share is not in 0..1."""
    if size < 8 or length < 1 or num_styles < 1:
        raise InputError(
            f"{where}: size is {size}, length {length} and num_styles {num_styles};"
            " the size must be at least 8, the others 1."
        )
    for name, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise InputError(f"{where}: {name} is {share}; it must be from 0 to 1.")


def pick(rng: np.random.Generator, names: Sequence[str]) -> str:
    """Sample one of the names uniformly."""
    return names[rng.integers(len(names))]


def edges(where: str, what: str, weights: Mapping[str, float | int], known: Sequence[str]) -> dict[str, float]:
    """Return the cumulative shares of the names with a positive weight, in the order of `known`.

    Raises:
      InputError: a name is unknown, a weight is negative, or no weight is positive.
    """
    strange = [name for name in weights if name not in known]
    if strange or any(not weight >= 0 for weight in weights.values()) or not sum(weights.values()) > 0:
        raise InputError(
            f"{where}: {what} {dict(weights)} must assign weights of at least 0 to some of {', '.join(known)},"
            " and a positive one to at least one of them."
        )
    names = [name for name in known if weights.get(name, 0) > 0]
    shares = np.cumsum([weights[name] for name in names])
    return dict(zip(names, (shares / shares[-1]).tolist(), strict=True))


def choose(rng: np.random.Generator, edges: Mapping[str, float]) -> str:
    """Sample a name by the cumulative shares that `edges` returns."""
    value = rng.random()
    return next(name for name, edge in edges.items() if value < edge)
