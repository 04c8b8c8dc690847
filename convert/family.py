# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One kind of checkpoint file."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

from uso_jax.weights.tables.table import Row

from .tables.infer_sizes import Size


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of file: the component it holds, its table, and how the model's sizes follow from tensor shapes."""

    name: str
    title: str
    component: str
    rows: Sequence[Row]
    sizes: Mapping[str, Mapping[str, Size]]  # by section and field of uso_jax.weights.section_fields()
    prefixes: tuple[str, ...] = ("",)  # that all its keys may have; the first is for writing
    ignore: str = ""  # regex of keys that belong to other networks in the same file
    unread: str = ""  # regex of keys that its table would know, of layers that the model does not have
    foreign: str = ""  # regex of keys whose presence means that this is another, similar network
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)  # keys that hold the same tensor as another
    pattern: str = ""  # regex of its keys, if the table does not determine them
    asked_for: bool = False  # considered only when its component is requested

    @functools.cached_property
    def regex(self) -> re.Pattern:
        """Pattern of the keys it knows, without prefix."""
        if self.pattern:
            return re.compile(self.pattern)
        modules = ((m,) if isinstance(m, str) else m for m, _, _ in self.rows)
        suffixes = (kind for _, _, kind in self.rows)
        keys = [m + suffix for ms, kind in zip(modules, suffixes, strict=True) for m in ms for suffix in kind]
        return re.compile("|".join(re.sub(r"\\{\w\\}|\d+", r"\\d+", re.escape(key)) for key in [*keys, *self.aliases]))
