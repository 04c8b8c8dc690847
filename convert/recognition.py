# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Group weight files into components and compare each with its model, from the headers alone."""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.models.components import COMPONENTS, section_fields
from uso_jax.weights import manifest_configs
from uso_jax.weights.files.tensors import File, LazyTensor, Sources, dequantise, merge_sources
from uso_jax.weights.tables.table import Entry, expand

from . import layouts, strangers
from .layouts import Family
from .tables import lora
from .tables.infer_sizes import Shapes

TRANSFORMERS = {row.name for row in COMPONENTS.values() if row.folder == "transformer"}  # sections of base models


def read_config(path: str | pathlib.Path) -> dict[str, dict]:
    """Read a `--config` file: sizes by section, as in a manifest's `config`.

    Raises:
      InputError: the file is not JSON, or a name or type in it is wrong.
    """
    remedy = "pass a JSON file to --config"
    missing = f"{path} cannot be read, it does not exist; {remedy}"
    values = untrusted.json(pathlib.Path(path), missing=missing, remedy=remedy)
    if isinstance(values, dict):
        # Such files may also describe sampling and training, on which weights do not depend.
        values = {section: value for section, value in values.items() if section != "sampling"}
        if isinstance(values.get("autoencoder"), dict):
            values["autoencoder"] = {k: v for k, v in values["autoencoder"].items() if k != "resolution"}
    return manifest_configs.check_sections(values, str(path))


@dataclasses.dataclass
class Checkpoint:
    """One component in one or several files, compared with its model; only headers have been read."""

    family: Family
    prefix: str
    files: list[File]
    config: Any
    undetermined: list[str]  # sizes that neither tensor shapes nor --config determine
    shapes: dict[str, jax.ShapeDtypeStruct]
    entries: dict[str, Entry]
    sources: Sources  # by the table's keys
    missing: list[str]
    wrong: list[str]
    stray: list[str]
    twice: list[str]
    ignored: int
    quantised: int
    notes: list[str]

    @property
    def names(self) -> str:
        """Names of the files for messages."""
        return _names(self.files)

    @property
    def problems(self) -> dict[str, list[str]]:
        """What prevents the files from filling the model, by kind."""
        found = {"missing": self.missing, "stray": self.stray, "given twice": self.twice, "of wrong shape": self.wrong}
        return {name: keys for name, keys in found.items() if keys}

    def check(self) -> None:
        """Raise InputError if the checkpoint cannot be imported."""
        if self.undetermined:
            raise InputError(
                f"{self.names}: tensor shapes do not determine {' and '.join(self.undetermined)}; pass a JSON file"
                f" such as {_example(self.undetermined[0])} as --config"
            )
        if self.problems:
            lists = (f"{len(v)} {k} ({', '.join(v[:3])}{', ...' * (len(v) > 3)})" for k, v in self.problems.items())
            raise InputError(f"{self.names}: the tensors do not fit {self.family.name}: {'; '.join(lists)}")

    def structs(self, dtype: np.dtype | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the parameters with `dtype`, or each with the narrowest one that holds all its tensors exactly."""
        found: dict[str, set[np.dtype]] = {}
        for key, entry in self.entries.items():
            for piece in entry.pieces:
                found.setdefault(piece.path, set()).add(self.sources[key].dtype)
        return {
            path: jax.ShapeDtypeStruct(struct.shape, dtype or _common(found[path]))
            for path, struct in self.shapes.items()
        }


def _example(name: str) -> str:
    section, field = name.split(".")
    return json.dumps({section: {field: section_fields()[section][field]}})


def _common(dtypes: set[np.dtype]) -> np.dtype:
    return np.dtype(functools.reduce(jnp.promote_types, dtypes))


def _names(files: Sequence[File]) -> str:
    names = [str(file.path) for file in files]
    return ", ".join(names if len(names) <= 3 else [*names[:2], f"... ({len(names)} files)"])


def recognise(
    groups: Sequence[Sequence[File]],
    config: manifest_configs.Sections,
    pad_ranks: bool = False,
    component: str | None = None,
) -> list[Checkpoint]:
    """Group the tensors of files into components and compare each with its model.

    Args:
      groups: files that belong together, such as the shards of one index; groups may also be shards of each other.
      config: sizes that tensor shapes do not determine, or that override those they do.
      pad_ranks: accept adapters of mixed ranks.
      component: the only component to read; None: all that the files hold.

    Raises:
      InputError: a file is of no known family, shards are of different families, or a size cannot be read.
    """
    parts: dict[str, list] = {}
    for group in groups:
        found, twice = merge_sources(group)
        if sentence := strangers.describe(found):
            raise InputError(f"{_names(group)} {sentence}")
        found, quantised = dequantise(found)
        claims = layouts.detect(found, component)
        if not claims:
            some = ", ".join(list(found)[:3]) or "none"
            titles = "; ".join(family.title for family in layouts.FAMILIES)
            raise InputError(f"{_names(group)}: no known family has its tensors ({some}); known: {titles}")
        claimed = {key for _, _, keys in claims for key in keys}
        ignore = "|".join(f"({family.ignore})" for family, _, _ in claims if family.ignore)
        rest = [key for key in found if key not in claimed]
        stray = [key for key in rest if not (ignore and re.fullmatch(ignore, key))]
        for number, (family, prefix, keys) in enumerate(claims):
            part = parts.setdefault(family.component, [family, prefix, [], {}, [], [], 0, 0])
            if part[:2] != [family, prefix]:
                raise InputError(
                    f"{_names(group)} is {prefix}{family.name} but {_names(part[2])} is {part[1]}{part[0].name}:"
                    f" shards of one {family.component} must share a layout; import one of them"
                )
            part[2] += group
            part[4] += [key for key in keys if key in part[3]]
            offset = len(part[2])  # keeps the tensors of later files behind those of earlier ones
            for key in keys:
                source = found[key]
                place = (source.place[0] + offset, source.place[1])
                part[3].setdefault(key, dataclasses.replace(source, place=place))
            if number == 0:
                part[4] += twice
                part[5] += stray
                part[6] += len(rest) - len(stray)
                part[7] += quantised
    if component is not None:
        if component not in parts:
            raise InputError(f"the files hold {', '.join(parts)}, not {component}")
        parts = {component: parts[component]}
    return [_compare(*part, config=config, pad_ranks=pad_ranks) for part in parts.values()]


def _compare(
    family: Family,
    prefix: str,
    files: list[File],
    found: Sources,
    twice: list[str],
    stray: list[str],
    ignored: int,
    quantised: int,
    *,
    config: manifest_configs.Sections,
    pad_ranks: bool,
) -> Checkpoint:
    kinds = [
        f"{key} is {s.dtype}, not floating" for key, s in found.items() if not jnp.issubdtype(s.dtype, jnp.floating)
    ]
    missing: list[str] = []
    wrong: list[str] = []
    notes: list[str] = []
    found = {key.removeprefix(prefix): source for key, source in found.items()}
    if family.component == "lora" and not kinds:
        try:
            adapters = lora.normalise(found, files, pad_ranks)
        except InputError as error:
            raise InputError(f"{_names(files)}: {error}") from error
        if adapters.missing or adapters.wrong:
            lists = {"missing": adapters.missing, "of wrong shape": adapters.wrong}
            texts = (f"{len(v)} {k} ({', '.join(v[:3])}{', ...' * (len(v) > 3)})" for k, v in lists.items() if v)
            raise InputError(f"{_names(files)}: the tensors do not fit {family.name}: {'; '.join(texts)}")
        found, notes = adapters.sources, adapters.notes
    unread = {key for key in found if family.unread and re.fullmatch(family.unread, key)}
    found = {key: source for key, source in found.items() if key not in unread}
    for alias, name in family.aliases.items():
        if alias in found:
            twin = found.pop(alias)
            if found.setdefault(name, twin).shape != twin.shape:
                wrong.append(f"{alias} differs from {name}, which it should equal")
    shapes = {key: source.shape for key, source in found.items()}
    family = layouts.for_base(family, shapes, config)
    sections, undetermined = _sizes(family, shapes, config, _names(files))
    model, targets = layouts.build_model(family.component, sections)
    entries = expand(family.rows, targets)
    if family.component == "lora":
        filled = _fill_adapters(found, entries)
        if filled:
            notes.append(f"{filled} of {len(entries) // 2} adapters are not in the file and are zero")
    stray = stray + [prefix + key for key in found if key not in entries]
    missing += [prefix + key for key in entries if key not in found]
    wrong += kinds + [
        f"{prefix}{key} is {list(found[key].shape)}, not {list(entry.shape)}"
        for key, entry in entries.items()
        if key in found and found[key].shape != entry.shape
    ]
    return Checkpoint(
        family,
        prefix,
        files,
        model,
        undetermined,
        targets,
        entries,
        found,
        missing,
        wrong,
        stray,
        twice,
        ignored + len(unread),
        quantised,
        notes,
    )


def _fill_adapters(found: Sources, entries: dict[str, Entry]) -> int:
    """Add zeros for adapters that a file lacks; return their number."""
    filled = 0
    dtype = next(iter(found.values())).dtype
    for key, entry in entries.items():
        if key.endswith(".down.weight") and key not in found and (up := key.replace(".down.", ".up.")) not in found:
            for name, shape in ((key, entry.shape), (up, entries[up].shape)):
                read = lambda start=0, stop=None, shape=shape: np.zeros(shape, dtype)[start:stop]
                found[name] = LazyTensor(dtype, shape, read, (0, 0))
            filled += 1
    return filled


def _sizes(
    family: Family, shapes: Shapes, config: manifest_configs.Sections, names: str
) -> tuple[dict[str, dict], list[str]]:
    sections, undetermined = {}, []
    for section, fields in family.sizes.items():
        # An adapter's file determines some sizes of its transformer; only those fields are taken over.
        given = config.get(section, {})
        whole = section not in TRANSFORMERS or family.component == "transformer"
        own = section_fields()[section] if whole else fields
        sections[section] = {name: value for name, value in given.items() if name in own}
        for name, size in fields.items():
            if name in sections[section]:
                continue
            try:
                value = size(shapes)
            except KeyError as error:
                raise InputError(
                    f"{names}: {section}.{name} cannot be determined, tensor {error} is missing"
                ) from error
            except (ValueError, ZeroDivisionError) as error:
                raise InputError(f"{names}: {section}.{name} cannot be determined, {error}") from error
            if value is None:
                undetermined.append(f"{section}.{name}")
            else:
                sections[section][name] = value
    return sections, undetermined
