# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Files put together to components and compared with the models they should fill, from their headers alone."""

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

from convert import families
from convert.families import Family, Shapes
from convert.safetensors_file import SafetensorsFile
from convert.table import Entry, expand
from uso_jax import weights
from uso_jax.errors import InputError


def read_config(path: str | pathlib.Path) -> dict[str, dict]:
    """Read a `--config` file: sizes by section, as in a manifest's `config`.

    Raises:
      InputError: it is not JSON, or a name or type in it is wrong.
    """
    try:
        values = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give --config a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if isinstance(values, dict):
        # Such files also describe how a model is sampled and trained, which weights do not depend on.
        values = {section: value for section, value in values.items() if section != "sampling"}
        if isinstance(values.get("autoencoder"), dict):
            values["autoencoder"] = {k: v for k, v in values["autoencoder"].items() if k != "resolution"}
    return weights.check_sections(values, str(path))


@dataclasses.dataclass
class Checkpoint:
    """One component in one or several files, compared with the model it should fill; only headers have been read."""

    family: Family
    prefix: str
    files: list[SafetensorsFile]
    config: Any
    untold: list[str]  # sizes that neither the tensors nor --config tell
    shapes: dict[str, jax.ShapeDtypeStruct]
    entries: dict[str, Entry]
    missing: list[str]
    wrong: list[str]
    stray: list[str]
    twice: list[str]
    ignored: int

    @property
    def names(self) -> str:
        """Name the files in a message."""
        return ", ".join(str(file.path) for file in self.files)

    @property
    def problems(self) -> dict[str, list[str]]:
        """Give what keeps the files from filling the model, by kind."""
        found = {"missing": self.missing, "stray": self.stray, "given twice": self.twice, "of wrong shape": self.wrong}
        return {name: keys for name, keys in found.items() if keys}

    def check(self) -> None:
        """Refuse what cannot be imported."""
        if self.untold:
            raise InputError(
                f"{self.names}: the tensors do not tell {' and '.join(self.untold)}; write it into a JSON file such as"
                f" {_example(self.untold[0])} and give that as --config"
            )
        if self.problems:
            lists = (f"{len(v)} {k} ({', '.join(v[:3])}{', ...' * (len(v) > 3)})" for k, v in self.problems.items())
            raise InputError(f"{self.names}: the tensors do not fit {self.family.name}: {'; '.join(lists)}")

    def dtypes(self) -> dict[str, np.dtype]:
        """Give each parameter the narrowest dtype that keeps every tensor in it exact."""
        found: dict[str, set[np.dtype]] = {}
        for file in self.files:
            for key, tensor in file.tensors.items():
                if entry := self.entries.get(key.removeprefix(self.prefix)):
                    for path in entry.paths:
                        found.setdefault(path, set()).add(tensor.dtype)
        return {path: _common(dtypes) for path, dtypes in found.items()}


def _example(name: str) -> str:
    section, field = name.split(".")
    return json.dumps({section: {field: weights.FIELDS[section][field]}})


def _common(dtypes: set[np.dtype]) -> np.dtype:
    try:
        return np.dtype(functools.reduce(jnp.promote_types, dtypes))
    except ValueError:  # float8 has no implicit promotion
        return np.dtype(np.float32)


def recognise(files: Sequence[SafetensorsFile], config: weights.Sections) -> list[Checkpoint]:
    """Group files by component, several files of one being its shards, and compare each with its model.

    Raises:
      InputError: a file is of no known family, shards are of different ones, or a size cannot be read.
    """
    groups: dict[str, tuple[Family, str, list[SafetensorsFile]]] = {}
    for file in files:
        if (found := families.detect(file.tensors)) is None:
            some = ", ".join(list(file.tensors)[:3]) or "none"
            titles = "; ".join(family.title for family in families.FAMILIES)
            raise InputError(f"{file.path}: no known family has its tensors ({some}); known: {titles}")
        family, prefix = found
        first = groups.setdefault(family.component, (family, prefix, []))
        if first[:2] != found:
            raise InputError(
                f"{file.path} is {prefix}{family.name} but {first[2][0].path} is {first[1]}{first[0].name}:"
                f" shards of one {family.component} must share a layout; import one of them"
            )
        first[2].append(file)
    return [_compare(*group, config) for group in groups.values()]


def _compare(family: Family, prefix: str, files: list[SafetensorsFile], config: weights.Sections) -> Checkpoint:
    shapes: dict[str, tuple[int, ...]] = {}
    stray, twice, kinds, ignored = [], [], [], 0
    for file in files:
        for key, tensor in file.tensors.items():
            name = key.removeprefix(prefix)
            if family.ignore and re.fullmatch(family.ignore, key):
                ignored += 1
            elif not key.startswith(prefix):
                stray.append(key)
            elif name in shapes:
                twice.append(key)
            else:
                shapes[name] = tensor.shape
                if not jnp.issubdtype(tensor.dtype, jnp.floating):
                    kinds.append(f"{key} is {tensor.dtype}, not floating")
    names = ", ".join(str(file.path) for file in files)
    sections, untold = _sizes(family, shapes, config, names)
    model, targets = families.model(family, sections)
    entries = expand(family.rows, targets)
    stray += [prefix + key for key in shapes if key not in entries]
    missing = [prefix + key for key in entries if key not in shapes]
    wrong = kinds + [
        f"{prefix}{key} is {list(shapes[key])}, not {list(entry.shape)}"
        for key, entry in entries.items()
        if key in shapes and shapes[key] != entry.shape
    ]
    return Checkpoint(family, prefix, files, model, untold, targets, entries, missing, wrong, stray, twice, ignored)


def _sizes(family: Family, shapes: Shapes, config: weights.Sections, names: str) -> tuple[dict[str, dict], list[str]]:
    sections, untold = {}, []
    for section, fields in family.sizes.items():
        # An adapter's file tells what it needs of the transformer; only the fields it can tell are taken over.
        given = config.get(section, {})
        own = weights.FIELDS[section] if section != "flux" or family.component == "transformer" else fields
        sections[section] = {name: value for name, value in given.items() if name in own}
        for name, size in fields.items():
            if name in sections[section]:
                continue
            try:
                value = size(shapes)
            except KeyError as error:
                raise InputError(f"{names}: {section}.{name} cannot be told, tensor {error} is missing") from error
            except (ValueError, ZeroDivisionError) as error:
                raise InputError(f"{names}: {section}.{name} cannot be told, {error}") from error
            if value is None:
                untold.append(f"{section}.{name}")
            else:
                sections[section][name] = value
    return sections, untold
