# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One adapter of a weights directory, of which only headers were read."""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from uso_jax import weights
from uso_jax.common.errors import InputError
from uso_jax.models.components import COMPONENTS
from uso_jax.models.families import family_of
from uso_jax.weights.adapters.changes import Change
from uso_jax.weights.adapters.fitting import Base, fit
from uso_jax.weights.adapters.sources import open_source
from uso_jax.weights.parts import Part

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
      replaces_own: it takes the place of the directory's own adapters: at strength 1 they are gone.
    """

    name: str
    path: str
    strength: float
    changes: tuple[Change, ...]
    sha256: str
    notes: tuple[str, ...] = ()
    projector: Part | None = None
    replaces_own: bool = False

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


def open_adapter(path: str | pathlib.Path, base: Base, *, strength: Strength = 1.0, name: str | None = None) -> Adapter:
    """Open an adapter and fit it to a base; see `sources.open_source` for what it can be.

    A training goes on from the adapters that its weights have, so those of a run or of a weights directory take the
    place of the base's own; a file is added to them.

    Raises:
      InputError: it cannot be read, or does not fit the base.
    """
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not math.isfinite(strength):
        raise InputError(f"the strength of {path} must be a finite number, not {strength!r}")
    source = open_source(path)
    changes, notes = fit(source.found, source.files, base, str(path)) if source.found else ([], [])
    return Adapter(
        name or pathlib.Path(path).resolve().stem,
        str(path),
        float(strength),
        tuple(changes),
        source.digest(),
        tuple(notes),
        source.projector,
        source.component and bool(source.found),
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
        one = open_adapter(path, base, strength=strength)
        taken = {adapter.name for adapter in (*beside, *found)}
        free = (f"{one.name}_{number}" for number in itertools.count(2))
        name = one.name if one.name not in taken else next(name for name in free if name not in taken)
        found.append(dataclasses.replace(one, name=name))
    return [*found, open_projector(projector)] if projector is not None else found
