# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A weights directory with adapters: which of its parameters they change, and into what.

Adapters are merged into the weights as these are read, so sampling costs nothing more. Quantised weights stay as they
are: what is low-rank, and lies where USO's adapters do, is kept beside them at the sum of all ranks; other changes of
quantised weights are refused.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uso_jax import params, weights
from uso_jax.common.errors import InputError
from uso_jax.models.components import ADAPTERS, COMPONENTS, split_transformer
from uso_jax.models.families import family_of
from uso_jax.weights.adapters.arrays import AdaptedArray, Applied
from uso_jax.weights.adapters.changes import Change
from uso_jax.weights.adapters.fitting import TITLES, Base, fit
from uso_jax.weights.adapters.low_rank_sum import Columns, sum_low_rank
from uso_jax.weights.adapters.names import ADAPTED, adapter_sizes
from uso_jax.weights.adapters.sources import open_source, own_adapters
from uso_jax.weights.parts import Part
from uso_jax.weights.quantization import QuantisedArray

Strength = float | int


@dataclass(frozen=True)
class Adapter:
    """One adapter of a base.

    Attributes:
      name: by which it is unloaded.
      path: that was given.
      strength: multiplies its changes.
      changes: of the base.
      sha256: of its file or numbers.
      notes: what was left out.
      projector: a style projector that was beside it.
      instead: changes of the directory's own adapters, whose place it takes.
    """

    name: str
    path: str
    strength: float
    changes: tuple[Change, ...]
    sha256: str
    notes: tuple[str, ...] = ()
    projector: Part | None = None
    instead: tuple[Change, ...] = ()

    @property
    def weighted(self) -> list[tuple[Change, float]]:
        """All changes with their strengths: at strength 1, own adapters whose place it takes are gone."""
        return [*((one, self.strength) for one in self.changes), *((one, -self.strength) for one in self.instead)]

    def record(self) -> dict[str, Any]:
        """Return what identifies it, in JSON terms."""
        return {"name": self.name, "strength": self.strength, "sha256": self.sha256}


def open_base(directory: str | pathlib.Path) -> Base:
    """Return what adapters of a weights directory must fit.

    Raises:
      InputError: the directory has no transformer.
    """
    sections = weights.manifest(directory, "transformer")["config"]
    return Base.of(COMPONENTS[family_of(sections).transformer].name, weights.shapes(directory, "transformer"))


def open_adapter(
    path: str | pathlib.Path,
    directory: str | pathlib.Path,
    base: Base,
    *,
    strength: Strength = 1.0,
    name: str | None = None,
) -> Adapter:
    """Open an adapter and fit it to a weights directory; see `sources.open_source` for what it can be.

    A training goes on from the adapters that its weights have, so those of a run or of a weights directory take the
    place of the directory's own; a file is added to them.

    Raises:
      InputError: it cannot be read, or does not fit the base.
    """
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not math.isfinite(strength):
        raise InputError(f"the strength of {path} must be a finite number, not {strength!r}")
    source = open_source(path)
    changes, notes = fit(source.found, source.files, base, str(path)) if source.found else ([], [])
    own = own_adapters(directory) if source.component and source.found else {}
    return Adapter(
        name or pathlib.Path(path).resolve().stem,
        str(path),
        float(strength),
        tuple(changes),
        source.digest(),
        tuple(notes),
        source.projector,
        tuple(fit(own, [], base, f"{directory}/lora")[0]) if own else (),
    )


def open_projector(path: str | pathlib.Path) -> Adapter:
    """Open a style projector alone: a file, or the one of a folder, weights directory or workdir.

    Raises:
      InputError: there is none.
    """
    source = open_source(path)
    if source.projector is None:
        raise InputError(f"{path} holds no style projector, but an adapter; pass it as --lora")
    return Adapter("projector", str(path), 1.0, (), source.digest(), projector=source.projector)


def open_adapters(
    directory: str | pathlib.Path,
    wanted: Sequence[tuple[str | pathlib.Path, Strength]],
    projector: str | pathlib.Path | None = None,
    *,
    beside: Sequence[Adapter] = (),
) -> list[Adapter]:
    """Open several adapters of a weights directory, named by their files.

    Args:
      directory: the weights directory.
      wanted: paths and strengths.
      projector: replaces the style projector.
      beside: adapters that are there already, whose names are taken.

    Raises:
      InputError: one cannot be read, or does not fit.
    """
    found: list[Adapter] = []
    base = open_base(directory) if wanted else None
    for path, strength in wanted:
        one = open_adapter(path, directory, base, strength=strength)
        taken = {adapter.name for adapter in (*beside, *found)}
        free = (f"{one.name}_{number}" for number in itertools.count(2))
        name = one.name if one.name not in taken else next(name for name in free if name not in taken)
        found.append(dataclasses.replace(one, name=name))
    return [*found, open_projector(projector)] if projector is not None else found


class Adapted:
    """A weights directory with adapters, which may be none.

    Args:
      directory: the weights directory.
      adapters: with different names. Of several projectors, the last counts.

    Attributes:
      projector: that an adapter brings, or None.

    Raises:
      InputError: two adapters have one name, or a quantised weight cannot be changed.
    """

    def __init__(self, directory: str | pathlib.Path, adapters: Sequence[Adapter] = ()):
        self.directory, self.adapters = pathlib.Path(directory), tuple(adapters)
        names = [adapter.name for adapter in adapters]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"two adapters are called {twice[0]!r}; give one another name")
        self._base: Mapping[str, Any] = {}
        self._merged: dict[str, list[Applied]] = {}
        self._columns: list[Columns] = []
        self.projector = next((a.projector for a in reversed(self.adapters) if a.projector is not None), None)
        if any(adapter.changes for adapter in adapters):
            self._sort(open_base(directory))

    def _sort(self, base: Base) -> None:
        """Decide for each change whether it is merged or kept beside a quantised weight."""
        self._base = weights.read(self.directory, "transformer")
        for adapter in self.adapters:
            for change, strength in adapter.weighted:
                entry = base.names.entries[change.key]
                one = Applied(entry, change, strength, adapter.path)
                quantised = {p.path for p in entry.pieces if isinstance(self._base[p.path], QuantisedArray)}
                for path in {piece.path for piece in entry.pieces} - quantised:
                    self._merged.setdefault(path, []).append(one)
                self._columns += self._beside(one, quantised) if quantised else []

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
        """Return the transformer's config with the adapters that are kept beside it, and with the projector.

        Raises:
          InputError: the projector is for another width or base model.
        """
        if self._columns:
            rank = self._lora["double_blocks/processor/qkv_lora1/down/kernel"].shape[2]
            config = dataclasses.replace(config, lora_rank=rank, lora_scale=1.0, lora_rules=())
        if self.projector is None:
            return config
        width = self.projector.params["feature_embedder/high_projection/kernel"].shape[-1]
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


class _InMemory:
    """An array with the interface of StoredArray."""

    def __init__(self, array: Any):
        self._array, self.shape, self.dtype = array, tuple(array.shape), np.dtype(array.dtype)

    def part(self, index: tuple[slice, ...], dtype: Any = None) -> np.ndarray:
        return np.asarray(self._array)[index].astype(dtype or self.dtype)
