# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Sources of triplets by name, and mixtures of them."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uso_jax.common.errors import InputError
from uso_jax.data import readers
from uso_jax.data.swapped import Swapped
from uso_jax.data.triplet import TripletSource

DRAWN = ("procedural", "emoji")


@dataclass(frozen=True)
class Mixture:
    """Several sources, and how often an example comes from each; every source is gone through at its own pace."""

    sources: tuple[TripletSource, ...]
    weights: tuple[float, ...]


def open_source(spec: Mapping[str, Any], wishes: Mapping[str, Any] | None = None) -> TripletSource | Mixture:
    """Open the source that spec["name"] names, with the other entries of the mapping as its arguments.

    `wishes` are further arguments, such as a training stage's tasks, for a source that knows them; others ignore them.
    One is for all: `swapped=True` exchanges content and target.
    """
    all_wishes, wishes = wishes, dict(wishes or {})
    if wishes.pop("swapped", False) and spec.get("name") not in ("mixture", "features"):  # features are swapped already
        return Swapped(open_source(spec, wishes))
    name, arguments = spec.get("name"), {key: value for key, value in spec.items() if key != "name"}
    if name == "mixture":
        parts, weights = arguments["parts"], tuple(float(part["weight"]) for part in arguments["parts"])
        if not parts or not all(weight > 0 for weight in weights):
            raise InputError("data source 'mixture': give at least one source a positive weight.")
        own = [{key: value for key, value in part.items() if key != "weight"} for part in parts]
        return Mixture(tuple(open_source(part, all_wishes) for part in own), weights)
    # Imported here: each source brings its own dependencies, and only the chosen one should be needed.
    if name == "procedural":
        from uso_jax.data.drawings.source import ProceduralSource as source
    elif name == "emoji":
        from uso_jax.data.emoji.source import EmojiSource as source
    elif name == "features":
        from uso_jax.data.features import FeatureSource as source
    elif name == "triplets":
        from uso_jax.data.tfds.records import TripletSet as source
    elif name in readers.NAMES:
        source = readers.get_reader(name)
    else:
        known = ", ".join((*DRAWN, *readers.NAMES, "triplets", "features", "mixture"))
        raise InputError(f"unknown data source {name!r}; use one of {known}.")
    signature = inspect.signature(source)
    arguments |= {key: value for key, value in wishes.items() if key in signature.parameters}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise InputError(f"data source {name!r}: {error}; see {source.__name__} for its arguments.") from None
    if "path" in arguments and not str(arguments["path"]):
        raise InputError(f"data source {name!r} needs a path: set --config.data.{name}.train.path and .heldout.path.")
    if name in readers.NAMES:
        return readers.FileTriplets(name, str(arguments["path"]), source(**arguments))
    return source(**arguments)
