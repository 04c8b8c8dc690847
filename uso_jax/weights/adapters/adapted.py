# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A weights directory with adapters: which of its parameters they change, and into what.

Adapters are merged into the weights as these are read, so sampling costs nothing more. The directory's own are merged
too if that is asked for, or stay beside the transformer, as in training. Quantised weights stay as they are: what is
low-rank, and lies where USO's adapters do, is kept beside them at the sum of all ranks; other changes are refused.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uso_jax import params, weights
from uso_jax.common.errors import InputError
from uso_jax.models.components import ADAPTERS, COMPONENTS, split_transformer
from uso_jax.weights.adapters.adapter import Adapter, open_base
from uso_jax.weights.adapters.arrays import AdaptedArray, Applied
from uso_jax.weights.adapters.changes import Change
from uso_jax.weights.adapters.fitting import TITLES, Base, fit
from uso_jax.weights.adapters.low_rank_sum import Columns, sum_low_rank
from uso_jax.weights.adapters.names import ADAPTED, adapter_sizes
from uso_jax.weights.adapters.projector import width_of
from uso_jax.weights.adapters.sources import own_adapters
from uso_jax.weights.lazy_array import Index, LazyArray
from uso_jax.weights.quantization import QuantisedArray


class Adapted:
    """A weights directory with adapters, which may be none.

    Args:
      directory: the weights directory.
      adapters: with different names. Of several projectors, the last counts.
      merge: merge the directory's own adapters too, unless the transformer is quantised.
      own: changes of the directory's own adapters, if they are known.

    Attributes:
      projector: that an adapter brings, or None.

    Raises:
      InputError: two adapters have one name, or a quantised weight cannot be changed.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        adapters: Sequence[Adapter] = (),
        *,
        merge: bool = False,
        own: Sequence[Change] | None = None,
    ):
        self.directory, self.adapters, self.merge = pathlib.Path(directory), tuple(adapters), merge
        names = [adapter.name for adapter in adapters]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"two adapters are called {twice[0]!r}; give one another name")
        self._base: Mapping[str, Any] = {}
        self._merged: dict[str, list[Applied]] = {}
        self._columns: list[Columns] = []
        self.projector = next((a.projector for a in reversed(self.adapters) if a.projector is not None), None)
        has_own = {"transformer", "lora"} <= set(weights.components(directory))
        self._merges_own = merge and has_own and "quantization" not in weights.manifest(directory, "transformer")
        # What the directory's own adapters are merged with: those that take their place are set off against them.
        strength = float(self._merges_own) - sum(one.strength for one in adapters if has_own and one.replaces_own)
        self._own = own
        if strength or any(adapter.changes for adapter in adapters):
            self._sort(open_base(directory), strength)

    def _sort(self, base: Base, own_strength: float) -> None:
        """Decide for each change whether it is merged or kept beside a quantised weight."""
        self._base = weights.read(self.directory, "transformer")
        found = [(change, one.strength, one.path) for one in self.adapters for change in one.changes]
        if own_strength:
            where = f"{self.directory}/lora"
            if self._own is None:
                self._own = fit(own_adapters(self.directory), [], base, where)[0]
            found += [(change, own_strength, where) for change in self._own]
        for change, strength, where in found:
            entry = base.names.entries[change.key]
            one = Applied(entry, change, strength, where)
            quantised = {p.path for p in entry.pieces if isinstance(self._base[p.path], QuantisedArray)}
            for path in {piece.path for piece in entry.pieces} - quantised:
                self._merged.setdefault(path, []).append(one)
            self._columns += self._beside(one, quantised) if quantised else []

    def with_adapters(self, adapters: Sequence[Adapter]) -> "Adapted":
        """Return the same directory with other adapters.

        Raises:
          InputError: see the class.
        """
        return Adapted(self.directory, adapters, merge=self.merge, own=self._own)

    def _beside(self, one: Applied, quantised: set[str]) -> list[Columns]:
        """Return a change of quantised weights as columns of the adapters beside them."""
        found, offset = [], 0
        places = {f"{module}/kernel": adapter for adapter, module in ADAPTED.items()}
        for piece in one.entry.pieces:
            rows = (offset, offset := offset + piece.stop - piece.start)
            if piece.path not in quantised:
                continue
            low_rank = one.change.low_rank
            if low_rank is not None and piece.path not in places and not np.any(low_rank.up.read(*rows)):
                continue  # a fused layer of which it adapts only the queries, keys and values
            if low_rank is None or piece.path not in places:
                raise InputError(
                    f"{one.adapter} changes {one.change.key}, which {self.directory} holds quantised; merge it before"
                    " quantising: uso-convert merge BASE ADAPTER --to DIR --quantize MODE, with the unquantised BASE"
                )
            found.append(Columns(places[piece.path], one.entry.layer, piece, rows, low_rank, one.strength))
        return found

    # ------------------------------------------------------------------------------------------------ what it changes

    def config(self, config: Any) -> Any:
        """Return the transformer's config with the adapters that stay beside it, and with the projector.

        Raises:
          InputError: the projector is for another width or base model.
        """
        if self._merges_own:
            config = config.without_adapters()
        if self._columns:
            rank = self._lora["double_blocks/processor/qkv_lora1/down/kernel"].shape[2]
            config = dataclasses.replace(config, lora_rank=rank, lora_scale=1.0, lora_rules=())
        if self.projector is None:
            return config
        width = width_of(self.projector)
        if width != config.hidden_size:
            raise InputError(f"the projector is for a transformer of width {width}, this one has {config.hidden_size}")
        # FLUX.1 and FLUX.2 [klein] have the same width; a file without a manifest does not say which one it is for.
        base = next(name for name in TITLES if isinstance(config, COMPONENTS[name].config))
        if others := (TITLES.keys() & self.projector.config.keys()) - {base}:
            raise InputError(
                f"the projector was trained for {TITLES[others.pop()]}, and the base is {TITLES[base]}; take one that"
                " was trained for it"
            )
        before = dataclasses.asdict(config.projector) if config.projector else {}
        section = {**ADAPTERS["projector"].defaults, **before, **self.projector.config["projector"]}
        return dataclasses.replace(config, **ADAPTERS["projector"].apply(section))

    def arrays(self) -> dict[str, dict[str, Any]]:
        """Return the changed parameters by component and path, as arrays that are computed when they are read."""
        found: dict[str, dict[str, Any]] = {
            "transformer": {path: AdaptedArray(path, self._base, one) for path, one in self._merged.items()}
        }
        if self._columns:
            found["lora"] = {path: _InMemory(array) for path, array in self._lora.items()}
        if self.projector is not None:
            found["projector"] = {path: _InMemory(array) for path, array in self.projector.params.items()}
        return found

    @functools.cached_property
    def _lora(self) -> dict[str, np.ndarray]:
        """The directory's own adapters, if any, and those kept beside, as one."""
        has = "lora" in weights.components(self.directory)
        own = weights.read(self.directory, "lora") if has else {}
        sizes = adapter_sizes(weights.manifest(self.directory, "lora")["config"]["lora"]) if has else {}
        config = weights.config(self.directory, "transformer")
        row = next(row for row in COMPONENTS.values() if isinstance(config, row.config))
        one = dataclasses.replace(config, lora_rank=1, lora_rules=(), projector=None)
        shapes = split_transformer(params.shapes(lambda rngs: row.module(one, rngs=rngs)))["lora"]
        return sum_low_rank(shapes, own, sizes, self._columns)

    def changed(self, other: "Adapted") -> dict[str, set[str]]:
        """Return the parameters, by component, that differ from those of `other`."""
        paths = {*self._merged, *other._merged}
        found = {"transformer": {path for path in paths if self._merged.get(path) != other._merged.get(path)}}
        mine, theirs = self.arrays(), other.arrays()
        kept = {"lora": self._columns == other._columns, "projector": self.projector is other.projector}
        for name, same in kept.items():
            found[name] = set() if same else {*mine.get(name, ()), *theirs.get(name, ())}
        return found

    def record(self) -> list[dict[str, Any]]:
        """Return what identifies the adapters, in JSON terms."""
        return [adapter.record() for adapter in self.adapters]


class _InMemory(LazyArray):
    """An array that is in memory."""

    def __init__(self, array: Any):
        self._array, self.shape, self.dtype = array, tuple(array.shape), np.dtype(array.dtype)

    def part(self, index: Index, dtype: Any = None) -> np.ndarray:
        return np.asarray(self._array)[index].astype(dtype or self.dtype)
