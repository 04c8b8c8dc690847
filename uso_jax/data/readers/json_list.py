# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Lists of items that name image files, as a JSON list or with one item per line, whatever the file is called.

    json      {"prompt": "a cat", "content": "a.png", "styles": ["b.png"], "target": "c.png", "layout": "shifted"}
              or, in upstream's form, {"prompt": "a cat", "image_paths": ["a.png", "b.png"], "image_tgt_path": "c.png"}
    uno       {"prompt": "a cat", "image_paths": ["a.png"], "image_tgt_path": "c.png"}, or "image_path": "a.png"
    uso_eval  {"prompt": "a cat", "image_paths": ["a.png" or "", "b.png"], "save_dir": "name"}
    samples   {"prompt": "a cat", "content": "a.png", "styles": ["b.png"]}, to draw while a model trains

In USO's files the first of `image_paths` is the content ("" means none) and the others are styles; in UNO's all are
subjects. Paths are relative to the directory of the JSON file, or to `root`; backslashes separate folders too. "layout"
defaults to preserved for an empty prompt and to shifted otherwise. "mask" of `json` names an image that is white where
the target counts in full, and as large as the target. `uso_eval` also reads the config.json of upstream's
examples, with "image_ref1" and so on.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.common.upstream_items import with_image_paths
from uso_jax.data.readers.source import Item, LeftOut
from uso_jax.data.storage import urls
from uso_jax.data.storage.places import Place
from uso_jax.data.triplet import check_words

OWN_KEYS = {"prompt", "content", "styles", "target", "layout", "task", "key", "meta", "mask"}
UNO_KEYS = {"prompt", "image_paths", "image_path", "image_tgt_path"}
SAMPLE_KEYS = {"prompt", "content", "styles", "image_paths"}
EVAL_KEYS = {"prompt", "image_paths", "save_dir", "seed"}


def read_json(path: str | Path, root: str = "") -> Iterator[Item]:
    """Read a list in this project's form; items in upstream's form are accepted too."""
    folder = root or urls.parent(str(path))
    for number, (where, item) in enumerate(read_items(path)):
        yield own_item(item, number, folder, where)


def read_samples(path: str | Path) -> Iterator[Item]:
    """Read a list of items to draw: those of `read_json` without a target."""
    folder = urls.parent(str(path))
    for number, (where, item) in enumerate(read_items(path)):
        item = _object(with_image_paths(item, where) if isinstance(item, Mapping) else item, where, SAMPLE_KEYS)
        values = _references(item) if "image_paths" in item else item
        values = {"styles": [], "prompt": ""} | {name: value for name, value in values.items() if value is not None}
        values["layout"] = "shifted" if values["prompt"] else "preserved"
        yield _item(values, str(number), folder, where, None)


def read_uno(path: str | Path, root: str = "", several: str = "leave_out") -> Iterator[Item | LeftOut]:
    """Read UNO's training file.

    Args:
      path: the file.
      root: directory of the images; "" means that of the file.
      several: how to handle items with more than one subject, since a triplet has one content image: skip them
        ("leave_out") or use only the first subject ("first").
    """
    if several not in ("leave_out", "first"):
        raise InputError(f"several is {several!r}; use 'leave_out' or 'first'.")
    folder = root or urls.parent(str(path))
    for number, (where, item) in enumerate(read_items(path)):
        values = _upstream(item, where)
        if values["styles"]:
            if several == "leave_out":
                yield LeftOut("more than one subject (several=first uses the first)")
                continue
            values["styles"] = []
        yield _item(values, str(number), folder, where, _target(values, folder, where))


def read_uso_eval(path: str | Path, root: str = "", pictures: str = "") -> Iterator[Item]:
    """Read USO's list of images to generate. Targets are the generated images in the directory `pictures`, if set."""
    folder = root or urls.parent(str(path))
    for number, (where, item) in enumerate(read_items(path)):
        item = _object(with_image_paths(item, where) if isinstance(item, Mapping) else item, where, EVAL_KEYS)
        values = _references(item)
        values["layout"] = "shifted" if values["prompt"] else "preserved"
        name = item.get("save_dir", str(number))
        if not isinstance(name, str):
            raise InputError(f'{where}: "save_dir" must be a string, not {name!r}.')
        made = Place(urls.join(pictures, f"{name}_0.png", where)) if pictures else None
        yield _item(values, str(number), folder, where, made)


def read_items(path: str | Path, nan: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield (location, item) of a JSON list or of JSON lines; `nan` accepts NaN, which public score files hold.

    Raises:
      InputError: the file is missing, invalid or empty.
    """
    path, empty = str(path), True
    if not urls.exists(path):
        raise InputError(f"{path} does not exist: check the path of the triplets file.")
    text = urls.read_text(path)
    for pair in untrusted.json_items(text, Any, untrusted.printable(path), limit=untrusted.LIST_LIMIT, nan=nan):
        empty = False
        yield pair
    if empty:
        raise InputError(f"{path} must contain a list with at least one item.")


def own_item(item: Any, number: int, folder: str, where: str) -> Item:
    """Validate and convert one item of `read_json`.

    Raises:
      InputError: the item is invalid; `where` is the prefix of the message.
    """
    if isinstance(item, Mapping) and "image_tgt_path" in item:
        values = _upstream(item, where)
        return _item(values, str(number), folder, where, _target(values, folder, where))
    item = _object(item, where, OWN_KEYS)
    values = {"styles": [], "prompt": ""} | {name: value for name, value in item.items() if value is not None}
    return _item(values, str(item.get("key", number)), folder, where, _target(values, folder, where))


def _upstream(item: Any, where: str) -> dict[str, Any]:
    item = _object(item, where, UNO_KEYS)
    return _references(item) | {"target": item.get("image_tgt_path")}


def _references(item: Mapping[str, Any]) -> dict[str, Any]:
    references = item.get("image_paths", [item["image_path"]] if "image_path" in item else [])
    references = references if isinstance(references, list) else [references]
    return {"prompt": item.get("prompt", ""), "content": (references or [None])[0], "styles": references[1:]}


def _object(item: Any, where: str, known: set[str]) -> Mapping[str, Any]:
    """Raise an InputError unless `item` is a JSON object with known keys only."""
    if not isinstance(item, Mapping):
        raise InputError(f"{where} is not a JSON object.")
    if strange := sorted(set(item) - known):
        raise InputError(f"{where} has unknown keys {', '.join(strange)}; known are {', '.join(sorted(known))}.")
    return item


def _target(values: Mapping[str, Any], folder: str, where: str) -> Place:
    target = values.get("target")
    if not isinstance(target, str) or not target:
        raise InputError(f'{where} has no "target": add the image file that the model should learn to generate.')
    return Place(urls.join(folder, target, where))


def _item(values: Mapping[str, Any], key: str, folder: str, where: str, target: Place | None) -> Item:
    prompt, content, styles = (values.get(name) for name in ("prompt", "content", "styles"))
    if not isinstance(styles, list) or not all(isinstance(path, str) and path for path in styles):
        raise InputError(f'{where}: "styles" must be a list of image files.')
    for name in ("content", "mask"):
        if not isinstance(values.get(name), str | None):
            raise InputError(f'{where}: "{name}" must be an image file or null.')
    layout = values.get("layout", "shifted" if prompt or not content else "preserved")
    check_words(prompt, layout, where)
    meta = values.get("meta", {})
    if not isinstance(meta, Mapping):
        raise InputError(f'{where}: "meta" must be a JSON object.')
    place = lambda path: Place(urls.join(folder, path, where)) if path else None
    mask = place(values.get("mask"))
    return Item(key, target, prompt, place(content), tuple(map(place, styles)), layout, dict(meta), mask)
