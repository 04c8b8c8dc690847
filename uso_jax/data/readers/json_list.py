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
from uso_jax.data.readers.source import NONE, LeftOut, Packed, pack, quote
from uso_jax.data.storage import urls
from uso_jax.data.triplet import check_words

OWN_KEYS = {"prompt", "content", "styles", "target", "layout", "task", "key", "meta", "mask"}
UNO_KEYS = {"prompt", "image_paths", "image_path", "image_tgt_path"}
SAMPLE_KEYS = {"prompt", "content", "styles", "image_paths"}
EVAL_KEYS = {"prompt", "image_paths", "save_dir", "seed"}


def read_json(path: str | Path, root: str = "") -> Iterator[Packed]:
    """Read a list in this project's form; items in upstream's form are accepted too."""
    folder = root or urls.parent(str(path))
    for number, (where, item) in enumerate(read_items(path)):
        yield _own_item(item, number, folder, where)


def read_samples(path: str | Path) -> Iterator[Packed]:
    """Read a list of items to draw: those of `read_json` without a target."""
    folder = urls.parent(str(path))
    for number, (where, item) in enumerate(read_items(path)):
        item = _object(with_image_paths(item, where) if isinstance(item, Mapping) else item, where, SAMPLE_KEYS)
        values = _references(item) if "image_paths" in item else item
        values = {"prompt": ""} | {name: value for name, value in values.items() if value is not None}
        values["layout"] = "shifted" if values["prompt"] else "preserved"
        yield _item(values, str(number), folder, where)


def read_uno(path: str | Path, root: str = "", several: str = "leave_out") -> Iterator[Packed | LeftOut]:
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


def read_uso_eval(path: str | Path, root: str = "", pictures: str = "") -> Iterator[Packed]:
    """Read USO's list of images to generate. Targets are the generated images in the directory `pictures`, if set."""
    folder = root or urls.parent(str(path))
    for number, (where, item) in enumerate(read_items(path)):
        item = _object(with_image_paths(item, where) if isinstance(item, Mapping) else item, where, EVAL_KEYS)
        values = _references(item)
        values["layout"] = "shifted" if values["prompt"] else "preserved"
        name = item.get("save_dir", str(number))
        if not isinstance(name, str):
            raise InputError(f'{where}: "save_dir" must be a string, not {name!r}.')
        made = _file(pictures, f"{name}_0.png", where) if pictures else NONE
        yield _item(values, str(number), folder, where, made)


def read_items(path: str | Path, nan: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield (location, item) of a JSON list or of JSON lines; `nan` accepts NaN, which public score files hold.

    Raises:
      InputError: the file is missing, invalid or empty.
    """
    path, empty = str(path), True
    if not urls.exists(path):
        raise InputError(f"{path} does not exist: check the path of the triplets file.")
    source = urls.read_text(path) if urls.is_url(path) else Path(path)
    for pair in untrusted.json_items(source, Any, untrusted.printable(path), nan=nan):
        empty = False
        yield pair
    if empty:
        raise InputError(f"{path} must contain a list with at least one item.")


def _own_item(item: Any, number: int, folder: str, where: str) -> Packed:
    """Validate and convert one item of `read_json`; a list has millions of them."""
    if isinstance(item, dict) and "image_tgt_path" in item:
        values = _upstream(item, where)
        return _item(values, str(number), folder, where, _target(values, folder, where))
    values = _object(item, where, OWN_KEYS)
    if None in values.values():
        values = {name: value for name, value in values.items() if value is not None}
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
    if not isinstance(item, dict):
        raise InputError(f"{where} is not a JSON object.")
    if not item.keys() <= known:
        strange = ", ".join(sorted(item.keys() - known))
        raise InputError(f"{where} has unknown keys {strange}; known are {', '.join(sorted(known))}.")
    return item


def _target(values: Mapping[str, Any], folder: str, where: str) -> str:
    target = values.get("target")
    if not isinstance(target, str) or not target:
        raise InputError(f'{where} has no "target": add the image file that the model should learn to generate.')
    return _file(folder, target, where)


def _file(folder: str, name: str, where: str) -> str:
    return f"[{quote(urls.prefix(folder) + urls.check_inside(name, where))}]"  # a `Place` that is a whole file, packed


def _item(values: Mapping[str, Any], key: str, folder: str, where: str, target: str = NONE) -> Packed:
    """Check and pack one item; a list has millions of them."""
    get = values.get
    prompt, content, mask, styles, meta = get("prompt", ""), get("content"), get("mask"), get("styles"), get("meta")
    if not isinstance(styles, list) and "styles" in values:
        raise InputError(f'{where}: "styles" must be a list of image files.')
    files = []
    for style in styles or ():
        if not isinstance(style, str) or not style:
            raise InputError(f'{where}: "styles" must be a list of image files.')
        files.append(_file(folder, style, where))
    if not (content is None or isinstance(content, str)) or not (mask is None or isinstance(mask, str)):
        name = "mask" if content is None or isinstance(content, str) else "content"
        raise InputError(f'{where}: "{name}" must be an image file or null.')
    layout = get("layout", "shifted" if prompt or not content else "preserved")
    check_words(prompt, layout, where)
    if not isinstance(meta, dict) and "meta" in values:
        raise InputError(f'{where}: "meta" must be a JSON object.')
    return pack(
        key,
        prompt,
        layout,
        _file(folder, content, where) if content else NONE,
        files,
        target,
        meta or {},
        _file(folder, mask, where) if mask else NONE,
    )
