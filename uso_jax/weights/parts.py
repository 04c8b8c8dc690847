# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One component with its sizes, whether it is stored in a weights directory or in a training's checkpoint."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from uso_jax import weights
from uso_jax.weights import manifest_configs


@dataclasses.dataclass
class Part:
    """A component: parameters by path, read when they are indexed, and its sizes."""

    params: Mapping[str, Any]
    config: manifest_configs.Sections
    family: str = ""  # the family it was imported from
    prefix: str | None = None
    quantised: str = ""  # the quantised format, if any

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in self.params.items()}


def open_directory(directory: str | pathlib.Path) -> dict[str, Part]:
    """Return the components of a weights directory."""
    return {component: open_component(directory, component) for component in weights.components(directory)}


def open_component(directory: str | pathlib.Path, component: str) -> Part:
    """Return one component of a weights directory."""
    record = weights.manifest(directory, component)
    params = weights.read(directory, component)
    mode = record.get("quantization", {}).get("mode", "")
    return Part(params, record["config"], record["family"], record.get("prefix"), mode)
