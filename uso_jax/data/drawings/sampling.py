# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What sources that draw their triplets share: checked arguments, and choices by weight.

`where` names the source in messages.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from uso_jax.common.errors import InputError


def check_arguments(where: str, *, size: int, length: int, num_styles: int, shares: Mapping[str, float | int]) -> None:
    """Refuse sizes and numbers that are too small, and shares that are none."""
    if size < 8 or length < 1 or num_styles < 1:
        raise InputError(
            f"{where}: size is {size}, length {length} and num_styles {num_styles};"
            " the size must be at least 8, the others 1."
        )
    for name, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise InputError(f"{where}: {name} is {share}; it is a share from 0 to 1.")


def pick(rng: np.random.Generator, names: Sequence[str]) -> str:
    """Draw one of several names."""
    return names[rng.integers(len(names))]


def edges(where: str, what: str, weights: Mapping[str, float | int], known: Sequence[str]) -> dict[str, float]:
    """Give the upper edges of the shares of [0, 1) of what has a positive weight, in the order of `known`."""
    strange = [name for name in weights if name not in known]
    if strange or any(not weight >= 0 for weight in weights.values()) or not sum(weights.values()) > 0:
        raise InputError(
            f"{where}: {what} {dict(weights)} must give a weight of at least 0 to some of {', '.join(known)}"
            " and a positive one to at least one."
        )
    names = [name for name in known if weights.get(name, 0) > 0]
    shares = np.cumsum([weights[name] for name in names])
    return dict(zip(names, (shares / shares[-1]).tolist(), strict=True))


def choose(rng: np.random.Generator, edges: Mapping[str, float]) -> str:
    """Draw one of several names by the edges of their shares."""
    value = rng.random()
    return next(name for name, edge in edges.items() if value < edge)
