# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Open sources of triplets by name, as a configuration or manifest describes them, and mixtures of sources.

Names are "procedural", "emoji", the readers of `uso_jax.data.readers`, "triplets" (TFDS), "features", "samples" (items
to draw, without targets) and "mixture".
"""

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
    """Several sources with sampling weights. Each source is shuffled and repeated independently.

    `loss_weights` are the weights of their examples in the loss; empty: all are 1.
    """

    sources: tuple[TripletSource, ...]
    weights: tuple[float, ...]
    loss_weights: tuple[float, ...] = ()


def open_source(spec: Mapping[str, Any], wishes: Mapping[str, Any] | None = None) -> TripletSource | Mixture:
    """Open the source named by spec["name"], with the other entries as its arguments.

    Args:
      spec: name and arguments; "part" ("train" or "heldout") and "heldout_share" split a source of files.
      wishes: further arguments, such as the tasks of a training stage. Sources that do not accept them ignore them,
        except `swapped=True`, which exchanges content and target of any source.

    Raises:
      InputError: the name is unknown, or the arguments do not match the source.
    """
    all_wishes, wishes = wishes, dict(wishes or {})
    if wishes.pop("swapped", False) and spec.get("name") not in ("mixture", "features"):  # features are swapped already
        return Swapped(open_source(spec, wishes))
    name, arguments = spec.get("name"), {key: value for key, value in spec.items() if key != "name"}
    part, share = arguments.pop("part", None), arguments.pop("heldout_share", 0.0)
    if name == "mixture":
        parts, weights = arguments["parts"], tuple(float(part["weight"]) for part in arguments["parts"])
        if not parts or not all(weight > 0 for weight in weights):
            raise InputError("data source 'mixture': all weights must be positive, and there must be at least one.")
        own = [{k: value for k, value in part.items() if k not in ("weight", "loss_weight")} for part in parts]
        weighed = any("loss_weight" in part for part in parts)
        loss_weights = tuple(float(part.get("loss_weight", 1.0)) for part in parts) if weighed else ()
        return Mixture(tuple(open_source(part, all_wishes) for part in own), weights, loss_weights)
    # Imported here, so that only the dependencies of the chosen source are needed.
    if name == "procedural":
        from uso_jax.data.drawings.source import ProceduralSource as source
    elif name == "emoji":
        from uso_jax.data.emoji.source import EmojiSource as source
    elif name == "features":
        from uso_jax.data.features import FeatureSource as source
    elif name == "samples":
        from uso_jax.data.samples import Samples as source
    elif name == "triplets":
        from uso_jax.data.tfds.records import TripletSet as source
    elif name in readers.READERS:
        source = readers.get_reader(name)
    else:
        known = ", ".join((*DRAWN, *readers.READERS, "triplets", "features", "mixture"))
        raise InputError(f"unknown data source {name!r}; use one of {known}.")
    signature = inspect.signature(source)
    arguments |= {key: value for key, value in wishes.items() if key in signature.parameters}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise InputError(f"data source {name!r}: {error}; see {source.__name__} for its arguments.") from None
    if "path" in arguments and not str(arguments["path"]):
        raise InputError(f"data source {name!r} needs a path: set --config.data.{name}.train.path and .heldout.path.")
    if name in readers.READERS:
        found = readers.FileTriplets(name, str(arguments["path"]), source(**arguments))
        return found if part is None else found.split(share)[part]
    return source(**arguments)
