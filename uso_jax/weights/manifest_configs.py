# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes of networks in JSON terms, as manifests hold them, and the configs that they become.

Sections are those of `uso_jax.models.components`: one per network ("flux" is the transformer of FLUX.1), with "lora"
and "projector" for what USO adds to the transformer.
"""

from collections.abc import Mapping
from typing import Any

from uso_jax.common.errors import InputError
from uso_jax.common.untrusted import require_object
from uso_jax.models.components import ADAPTERS, COMPONENTS, row_of, section_fields

Sections = Mapping[str, Mapping[str, Any]]  # section -> field -> value


def describe(component: str, config: Any) -> dict[str, dict]:
    """Return a manifest's `config`: the component's sizes by section.

    An adapter's also has those that it needs the transformer to have; `config` is then the transformer's.
    """
    if component not in ADAPTERS:
        row = next((r for r in COMPONENTS.values() if r.folder == component and type(config) is r.config), None)
        return (row or row_of(component)).describe(config)
    adapter = ADAPTERS[component]
    transformer = next(row for row in COMPONENTS.values() if type(config) is row.config)
    return {
        component: adapter.describe(config),
        transformer.name: {name: getattr(config, name) for name in adapter.needs},
    }


def check_sections(sections: Any, where: str) -> dict[str, dict]:
    """Check names and types of sizes from JSON and turn lists into tuples.

    Raises:
      InputError: a section or field is unknown, of the wrong type or not positive; `where` names the file.
    """
    known_fields = section_fields()
    checked = {}
    for section, values in require_object(sections, where).items():
        if section not in known_fields:
            raise InputError(f"{where}: unknown section {section!r}; sections are {', '.join(known_fields)}")
        checked[section] = {}
        for name, value in require_object(values, f"{where}: {section}").items():
            if name not in known_fields[section]:
                known = ", ".join(known_fields[section])
                raise InputError(f"{where}: unknown key {section}.{name}; {section} may have {known}")
            default = known_fields[section][name]
            value = tuple(value) if isinstance(value, list) else value
            if isinstance(default, float) and type(value) is int:
                value = float(value)
            wanted = "list of integers" if isinstance(default, tuple) else type(default).__name__
            items_fit = not isinstance(value, tuple) or all(type(item) is int for item in value)
            if (section, name) == ("lora", "rules"):
                wanted, items_fit = (
                    "list of (regex, rank, factor)",
                    isinstance(value, tuple) and all(map(_is_rule, value)),
                )
                value = tuple((rule[0], rule[1], float(rule[2])) for rule in value) if items_fit else value
            if type(value) is not type(default) or not items_fit:
                raise InputError(f"{where}: {section}.{name} must be of type {wanted}, not {value!r}")
            if type(value) in (int, float) and value <= 0 and default != 0 and name != "shift_factor":
                raise InputError(f"{where}: {section}.{name} must be positive, not {value}")
            checked[section][name] = value
    return checked


def _is_rule(value: Any) -> bool:
    kinds = (str, int, int | float)
    return isinstance(value, list | tuple) and len(value) == len(kinds) and all(map(isinstance, value, kinds))


def build(model: str, sections: Sections, **changes) -> Any:
    """Return the config of a row of `uso_jax.models.components`, with `changes` such as dtype.

    A transformer's has the adapters that have a section.
    """
    row = COMPONENTS[model]
    try:
        if row.folder == "transformer":
            for name, adapter in ADAPTERS.items():
                if name in sections:
                    changes = adapter.apply({**adapter.defaults, **sections[name]}) | changes
        return row.build(sections, **changes)
    except (ValueError, ArithmeticError, TypeError) as error:
        raise InputError(f"{model}: {error}") from error
