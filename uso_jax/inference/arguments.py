# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Arguments of a call for several images: one value for all, or a list with one for each."""

from collections.abc import Iterator, Mapping
from typing import Any

from uso_jax.common.errors import InputError
from uso_jax.inference.options import SPECS

# Arguments that are a list for one image already, so that one for each image is a list of lists.
_LISTS = {"contents", "styles", "style_masks"} | {name for name, spec in SPECS.items() if spec.kind.several}


def one_per_image(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the arguments of each image; a value that is not a list with one value per image holds for all of them."""
    is_list = lambda value: isinstance(value, list | tuple)
    listed = {
        name for name, value in values.items() if is_list(value) and (name not in _LISTS or any(map(is_list, value)))
    }
    counts = {name: len(values[name]) for name in values if name in listed}
    if len(set(counts.values())) > 1:
        raise InputError(f"lists have different lengths: {', '.join(f'{name} {n}' for name, n in counts.items())}")
    for i in range(max(counts.values(), default=1)):
        yield {name: value[i] if name in listed else value for name, value in values.items()}
