# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One item of a benchmark: what is asked for, and what an image of it is compared with.

A benchmark's items are lines of JSON in items.jsonl, the form that all stages share. Paths there may be relative to
that file.
"""

import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from uso_jax.common import atomic_files
from uso_jax.common.errors import InputError
from uso_jax.common.json_files import read_json_lines

FILE = "items.jsonl"


@dataclass(frozen=True)
class EvalItem:
    """What one or several images are made of and judged by.

    Attributes:
      key: names the item and its images' files; it may have folders, and is unique in a benchmark.
      benchmark, subset: where it belongs, such as "omnicontext", "single_character".
      prompt: "" restyles the content image and keeps its layout.
      content_refs, style_refs: paths of reference images, in order.
      target: path of the true image, where the protocol has one.
      num_images: images to make, with seeds one apart.
      seed: of the first image; None leaves it to the generator.
      width, height: of an image; 0 leaves it to the model.
      meta: what a benchmark's own metrics read.
    """

    key: str
    benchmark: str
    subset: str = ""
    prompt: str = ""
    content_refs: tuple[str, ...] = ()
    style_refs: tuple[str, ...] = ()
    target: str | None = None
    num_images: int = 1
    seed: int | None = None
    width: int = 1024
    height: int = 1024
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        where = f"item {self.key!r}"
        inside = self.key and not os.path.isabs(self.key) and not re.search(r"(^|/)\.|[\\\0]|//|/$", self.key)
        if not inside:
            raise InputError(f"{where}: the key names a file below a folder, so it has neither '..' nor a leading '/'")
        if self.num_images < 1 or self.width < 0 or self.height < 0:
            raise InputError(f"{where}: num_images must be positive, width and height not negative")

    @property
    def references(self) -> list[str]:
        """All images that the item names: references, the target, and those in meta that metrics compare with."""
        named = [*self.content_refs, *self.style_refs, *([self.target] if self.target else [])]
        return list(dict.fromkeys([*named, *self.meta.get("subject_images", ()), *self.meta.get("image_files", ())]))


_TYPES = {
    "key": str, "benchmark": str, "subset": str, "prompt": str, "content_refs": list, "style_refs": list,
    "target": (str, type(None)), "num_images": int, "seed": (int, type(None)), "width": int, "height": int,
    "meta": dict,
}  # fmt: skip


def parse_item(values: Mapping[str, Any], where: str) -> EvalItem:
    """Check one item from JSON; `where` names it.

    Raises:
      InputError: a field is unknown, missing or of a wrong type.
    """
    if unknown := values.keys() - {f.name for f in fields(EvalItem)}:
        raise InputError(f"{where}: unknown field {min(unknown)!r}; known are {', '.join(_TYPES)}")
    for name in ("key", "benchmark"):
        if name not in values:
            raise InputError(f"{where} has no {name!r}; add it")
    for name, value in values.items():
        lists = isinstance(value, list) and not all(isinstance(path, str) for path in value)
        if not isinstance(value, _TYPES[name]) or isinstance(value, bool) or lists:
            raise InputError(f"{where}: {name} is {value!r}, which is of a wrong type")
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return EvalItem(**{**values, **lists})


def read_items(folder: pathlib.Path | str, benchmark: str) -> list[EvalItem]:
    """Read the items that `prepare` wrote, with absolute paths.

    Raises:
      InputError: there are none, a line is wrong, two share a key, or they are of another benchmark.
    """
    path = pathlib.Path(folder, FILE)
    found = []
    for number, values in read_json_lines(
        path, f"prepare them first: python scripts/evaluate.py prepare {benchmark} --to ..."
    ):
        one = parse_item(values, f"{path} line {number}")
        if one.benchmark != benchmark:
            raise InputError(
                f"{path} line {number}: item {one.key!r} is of benchmark {one.benchmark!r}, not {benchmark!r}"
            )
        found.append(_absolute(one, path.parent))
    check_items(found, str(path))
    return found


def check_items(items: Sequence[EvalItem], where: str) -> None:
    """Refuse a list without items, or with two whose images would have one name."""
    if not items:
        raise InputError(f"{where} holds no items; check what it was prepared from")
    seen: dict[str, str] = {}
    for one in items:
        if (first := seen.setdefault(one.key.casefold(), one.key)) != one.key or seen.get(key := f"\0{one.key}"):
            raise InputError(f"{where}: two items have the key {first!r}; keys must differ, whatever their case")
        seen[key] = one.key


def write_items(folder: pathlib.Path | str, items: Iterable[EvalItem]) -> pathlib.Path:
    """Write items.jsonl, whole or not at all; every image that an item names must be there.

    Raises:
      InputError: two items share a key, an image is missing, or the file cannot be written.
    """
    items, path = list(items), pathlib.Path(folder, FILE)
    check_items(items, str(path))
    for one in items:
        for file in one.references:
            if not os.path.isfile(file):
                raise InputError(f"item {one.key!r}: image {file!r} does not exist; check the path")
    text = "".join(json.dumps(asdict(_absolute(one, pathlib.Path())), ensure_ascii=False) + "\n" for one in items)
    with atomic_files.explained(path, "choose another --to"):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_files.write_file(path, text)
    return path


def _absolute(one: EvalItem, folder: pathlib.Path) -> EvalItem:
    place = lambda path: os.path.abspath(folder / path)
    meta = {
        name: [place(path) for path in value] if name in ("subject_images", "image_files") else value
        for name, value in one.meta.items()
    }
    values = {f.name: getattr(one, f.name) for f in fields(one)} | {
        "content_refs": tuple(map(place, one.content_refs)),
        "style_refs": tuple(map(place, one.style_refs)),
        "target": place(one.target) if one.target else None,
        "meta": meta,
    }
    return EvalItem(**values)
