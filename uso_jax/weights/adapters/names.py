# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which parameters the modules of adapter files are, derived from the tables of the transformers.

A module of an adapter has a name of black-forest-labs' or of diffusers' checkpoints, or the name of one of USO's
adapters, which are beside a module of the base.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from uso_jax.models.components import ADAPTERS
from uso_jax.models.layers import lora
from uso_jax.weights.tables import flux, flux2
from uso_jax.weights.tables.table import DENSE, Entry, Row, expand

TABLES: Mapping[str, tuple[tuple[Row, ...], ...]] = {  # by section of the transformer
    "flux": (flux.TRANSFORMER, flux.TRANSFORMER_DIFFUSERS),
    "flux2": (flux2.TRANSFORMER, flux2.TRANSFORMER_DIFFUSERS),
}
ADAPTED = {  # adapter -> the module it is added to
    "double_blocks/processor/qkv_lora1": "double_blocks/img_attn/qkv",
    "double_blocks/processor/qkv_lora2": "double_blocks/txt_attn/qkv",
    "double_blocks/processor/proj_lora1": "double_blocks/img_attn/proj",
    "double_blocks/processor/proj_lora2": "double_blocks/txt_attn/proj",
    "single_blocks/processor/qkv_lora": "single_blocks/linear1_qkv",
    "single_blocks/processor/proj_lora": "single_blocks/linear2",
}
_ALIASES: tuple[Row, ...] = (
    *((adapter.replace("/", ".{i}.", 1).replace("/", "."), module, DENSE) for adapter, module in ADAPTED.items()),
    ("single_blocks.{i}.linear1_qkv", "single_blocks/linear1_qkv", DENSE),  # ComfyUI's name of USO's
    ("transformer_blocks.{i}.attn.to_qkv", "double_blocks/img_attn/qkv", DENSE),  # diffusers, projections fused
    ("transformer_blocks.{i}.attn.to_added_qkv", "double_blocks/txt_attn/qkv", DENSE),
)


def adapter_sizes(section: Mapping[str, Any]) -> Mapping[str, lora.Sizes]:
    """Return rank and factor of each adapter, by its path, from the section `lora` of a manifest."""
    return lora.sizes(**{**ADAPTERS["lora"].defaults, **section})


class Names:
    """The names of a base model's tensors in all layouts.

    Args:
      section: of its transformer, "flux" or "flux2".
      shapes: its parameters, without adapters and projector.
    """

    def __init__(self, section: str, shapes: Mapping[str, jax.ShapeDtypeStruct]):
        self.entries: dict[str, Entry] = {}
        for rows in TABLES[section]:
            self.entries |= expand(rows, shapes)
        adapted = {path: struct for path, struct in shapes.items() if path.rpartition("/")[0] in ADAPTED.values()}
        self.entries |= expand(_ALIASES, adapted)
        self._keys = {spelling: key for key in self.entries for spelling in _spellings(key)}

    def key(self, module: str, tensor: str = "weight") -> str | None:
        """Return the key of a module's "weight" or "bias", or of a tensor called `module`, None if there is none."""
        if tensor == "weight":
            return self._keys.get(module) or self._keys.get(f"{module}.scale") or self.tensor(module)
        return self._keys.get(f"{module}.bias")

    def tensor(self, key: str) -> str | None:
        """Return a tensor's own key, None if the base has no such tensor."""
        return key if key in self.entries else None


def _spellings(key: str) -> Iterator[str]:
    """Yield the names by which adapters call a tensor: those of weights lack the last part; kohya writes no dots."""
    module, _, leaf = key.rpartition(".")
    more = "" if leaf == "weight" else f".{leaf}"
    yield module + more
    yield module.replace(".", "_") + more


def _places() -> Iterator[tuple[str, str, int | None]]:
    adapters = {module: adapter.replace("/", ".{i}.", 1).replace("/", ".") for adapter, module in ADAPTED.items()}
    for modules, parameters, _ in (row for table in (*sum(TABLES.values(), ()), _ALIASES) for row in table):
        first = parameters if isinstance(parameters, str) else parameters[0]
        if first in adapters:
            names = (modules,) if isinstance(modules, str) else modules
            for number, name in enumerate(names):
                yield name, adapters[first], number if len(names) > 1 else None


_PATTERNS = tuple(
    (re.compile(re.escape(module).replace(r"\.", "[._]").replace(r"\{i\}", r"(\d+)")), adapter, third)
    for module, adapter, third in dict.fromkeys(_places())
)


def place(module: str) -> tuple[str, int | None] | None:
    """Return USO's adapter of a module, and which third of it if the module is q, k or v alone; None if it has none."""
    for pattern, adapter, third in _PATTERNS:
        if match := pattern.fullmatch(module):
            return adapter.format(i=int(match[1])), third
    return None
