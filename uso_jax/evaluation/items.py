# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Benchmark items: what to generate, and what to compare it with.

All stages share one file of items, items.jsonl, with one JSON object per line. Paths may be relative to that file.
"""

import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from uso_jax.common import atomic_files, untrusted
from uso_jax.common.errors import InputError

FILE = "items.jsonl"


@dataclass(frozen=True)
class EvalItem:
    """One item of a benchmark.

    Attributes:
      key: unique name of the item and stem of its image files; may contain folders.
      benchmark: name of the benchmark, such as "omnicontext".
      subset: part of the benchmark, such as "single_character".
      prompt: "" restyles the content image and preserves its layout.
      content_refs: paths of content images, in order.
      style_refs: paths of style images, in order.
      target: path of the ground-truth image, if the protocol has one.
      num_images: number of images to generate; seeds are consecutive.
      seed: seed of the first image; None leaves the choice to the generator.
      width: in pixels; 0 uses the model's default.
      height: in pixels; 0 uses the model's default.
      meta: further values for the benchmark's metrics.
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
            raise InputError(f"{where}: the key must be a relative path without '..' or hidden names")
        if self.num_images < 1 or self.width < 0 or self.height < 0:
            raise InputError(f"{where}: num_images must be positive, and width and height must not be negative")

    @property
    def references(self) -> list[str]:
        """Paths of all images of the item: references, target, and those in `meta` that metrics compare with."""
        named = [*self.content_refs, *self.style_refs, *([self.target] if self.target else [])]
        return list(dict.fromkeys([*named, *self.meta.get("subject_images", ()), *self.meta.get("image_files", ())]))


_TYPES = {
    "key": str, "benchmark": str, "subset": str, "prompt": str, "content_refs": list, "style_refs": list,
    "target": (str, type(None)), "num_images": int, "seed": (int, type(None)), "width": int, "height": int,
    "meta": dict,
}  # fmt: skip


def parse_item(values: Mapping[str, Any], where: str) -> EvalItem:
    """Return the item that a JSON object describes; `where` names it in errors.

    Raises:
      InputError: a field is unknown, missing or has the wrong type.
    """
    if unknown := values.keys() - {f.name for f in fields(EvalItem)}:
        raise InputError(f"{where}: unknown field {min(unknown)!r}; known fields: {', '.join(_TYPES)}")
    for name in ("key", "benchmark"):
        if name not in values:
            raise InputError(f"{where} has no {name!r}; add it")
    for name, value in values.items():
        lists = isinstance(value, list) and not all(isinstance(path, str) for path in value)
        if not isinstance(value, _TYPES[name]) or isinstance(value, bool) or lists:
            raise InputError(f"{where}: {name} is {value!r}, which has the wrong type; see docs/evaluate.md")
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return EvalItem(**{**values, **lists})


def read_items(folder: pathlib.Path | str, benchmark: str) -> list[EvalItem]:
    """Return the items in `folder`/items.jsonl with absolute paths.

    Raises:
      InputError: the file is missing or empty, a line is invalid or belongs to another benchmark, or a key repeats.
    """
    path = pathlib.Path(folder, FILE)
    missing = f"{path} does not exist; run the stage prepare first: uso-evaluate prepare {benchmark} --to ..."
    found = []
    for number, values in untrusted.json_lines(path, missing=missing):
        one = parse_item(values, f"{path} line {number}")
        if one.benchmark != benchmark:
            raise InputError(
                f"{path} line {number}: item {one.key!r} belongs to benchmark {one.benchmark!r}, not {benchmark!r}"
            )
        found.append(_absolute(one, path.parent))
    check_items(found, str(path))
    return found


def check_items(items: Sequence[EvalItem], where: str) -> None:
    """Check that there are items and that their image files cannot collide.

    Raises:
      InputError: the list is empty, or two keys are equal, ignoring case.
    """
    if not items:
        raise InputError(f"{where} has no items; check the data folder that it was prepared from")
    seen: dict[str, str] = {}
    for one in items:
        if (first := seen.setdefault(one.key.casefold(), one.key)) != one.key or seen.get(key := f"\0{one.key}"):
            raise InputError(f"{where}: two items have the key {first!r}; keys must be unique, ignoring case")
        seen[key] = one.key


def write_items(folder: pathlib.Path | str, items: Iterable[EvalItem]) -> pathlib.Path:
    """Write `folder`/items.jsonl atomically and return its path.

    Raises:
      InputError: there are no items, a key repeats, a referenced image is missing, or the file cannot be written.
    """
    items, path = list(items), pathlib.Path(folder, FILE)
    check_items(items, str(path))
    for one in items:
        for file in one.references:
            if not os.path.isfile(file):
                raise InputError(f"item {one.key!r}: image {file!r} does not exist; check the path")
            if untrusted.printable(file) != file:
                raise InputError(f"item {one.key!r}: the name of image {file!r} is not UTF-8; rename the file")
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
