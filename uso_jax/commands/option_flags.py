# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Command-line flags of generation options, derived from `GenerationOptions`."""

import argparse
import dataclasses
from collections.abc import Collection
from typing import Any

from uso_jax.inference.option_kinds import BOOLEAN
from uso_jax.inference.options import SPECS, GenerationOptions


def add_option_flags(parser: argparse.ArgumentParser, names: Collection[str] = tuple(SPECS)) -> None:
    """Add a flag for each of these options. A flag that is not given has no default, see `given_options`."""
    group = parser.add_argument_group("generation options")
    defaults = {field.name: field.default for field in dataclasses.fields(GenerationOptions)}
    for name in names:
        spec, default = SPECS[name], defaults[name]
        kind = spec.kind
        shown = "from the weights directory" if default is None else default
        more: dict[str, Any] = {"type": kind.parse, "metavar": name.upper()}
        if kind is BOOLEAN:
            more |= {"nargs": "?", "const": True, "metavar": "BOOL"}
        if kind.choices:
            more |= {"choices": kind.choices, "metavar": None}
        if kind.several:
            more |= {"nargs": "+"}
        text = f"{spec.doc} (default: {shown})".replace("%", "%%")
        group.add_argument(f"--{spec.flag or name}", dest=name, default=None, help=text, **more)


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options whose flags were given, by name."""
    given = {name: value for name in SPECS if (value := getattr(args, name, None)) is not None}
    # One number holds for all styles; a list must have one per style.
    return {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in given.items()}
