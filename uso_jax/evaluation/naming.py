# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Where a model's images of a benchmark lie, so that images of other programs keep their names.

    results/omnigen2/images                          this project's names, KEY_NUMBER.png
    omnigen2/fullset/{subset}/{name}.png             OmniGen2's own, on OmniContext
    telestyle/{content}&&{style}                     with any of the known extensions

A pattern is relative to the last folder without braces. Its fields are those of FIELDS, with a format such as
{index:04d}.
"""

import os
import pathlib
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from uso_jax.common.errors import InputError
from uso_jax.evaluation.items import EvalItem

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def _stem(paths: tuple[str, ...]) -> str:
    return pathlib.Path(paths[0]).stem if paths else ""


FIELDS: Mapping[str, Callable[[EvalItem, int, int], Any]] = {
    "key": lambda item, number, index: item.key,
    "name": lambda item, number, index: item.key.rpartition("/")[2],
    "subset": lambda item, number, index: item.subset,
    "number": lambda item, number, index: number,
    "nth": lambda item, number, index: number + 1,
    "index": lambda item, number, index: index,
    "line": lambda item, number, index: index + 1,
    "content": lambda item, number, index: _stem(item.content_refs),
    "style": lambda item, number, index: _stem(item.style_refs),
    "prompt": lambda item, number, index: item.prompt,
}
"""Field -> (item, number of its image from 0, place of the item in items.jsonl from 0) -> value."""


@dataclass(frozen=True)
class Naming:
    """The names of a model's image files in a folder; "" is this project's naming."""

    pattern: str = ""

    @classmethod
    def split(cls, text: str) -> tuple[str, "Naming"]:
        """Return the folder and the naming of a folder or of a pattern of paths.

        Raises:
          InputError: the pattern has an unknown field.
        """
        if os.path.isdir(text):  # whatever it is called
            return text, OWN
        parts = text.replace(os.sep, "/").split("/")
        first = next((number for number, part in enumerate(parts) if "{" in part), len(parts))
        folder = "/".join(parts[:first]) or ("/" if text.startswith("/") else ".")
        return folder, cls.of("/".join(parts[first:]))

    @classmethod
    def of(cls, pattern: str) -> "Naming":
        """Return the naming of a pattern.

        Raises:
          InputError: the pattern has an unknown field or is none.
        """
        found = cls(pattern)
        try:
            fields = [field for _, field, *_ in string.Formatter().parse(pattern) if field is not None]
            if unknown := [field for field in fields if field not in FIELDS]:
                raise InputError(f"{pattern!r} has the field {{{unknown[0]}}}; known fields: {', '.join(FIELDS)}")
            found.names(EvalItem("k", "b"), 0, 0)
        except ValueError as error:
            raise InputError(f"{pattern!r} is no pattern of names ({error}); see docs/evaluate.md") from error
        return found

    def check(self, items: list[EvalItem], where: str) -> None:
        """Check that the pattern tells images of different items and numbers apart.

        Raises:
          InputError: it does not; `where` names the model.
        """
        seen: dict[str, str] = {}
        for index, one in enumerate(items if self.pattern else ()):
            for number in range(one.num_images):
                what, name = f"image {number} of {one.key!r}", self.names(one, number, index)[0]
                if (first := seen.setdefault(name, what)) != what:
                    raise InputError(
                        f"{where}: {self.pattern!r} names {first} and {what} alike, {name!r}; add a field such as"
                        " {key}, {index} or {number}"
                    )

    def names(self, item: EvalItem, number: int, index: int) -> list[str]:
        """Return the names that an image may have, without the folder; the first is the usual one."""
        if not self.pattern:
            stems = [f"{item.key}_{number}", *([item.key] if item.num_images == 1 else [])]
        else:
            values = {name: value(item, number, index) for name, value in FIELDS.items()}
            name = self.pattern.format_map(values)
            if name.lower().endswith(SUFFIXES):
                return [name]
            stems = [name]
        return [stem + suffix for stem in stems for suffix in SUFFIXES]


OWN = Naming()
