# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The user's own triplets: a JSON list of items that name image files.

    {"prompt": "a cat", "content": "a.png", "styles": ["b.png"], "target": "c.png", "layout": "shifted"}
    {"prompt": "a cat", "image_paths": ["a.png", "b.png"], "image_tgt_path": "c.png"}
    {"prompt": "a cat", "image_path": "a.png", "image_tgt_path": "c.png"}

The second and third are UNO's and USO's own: the first of `image_paths` is the content ("" = none), the others are
styles. Paths are relative to the JSON's folder. Without a "layout", an empty prompt means preserved, any other shifted.
"""

import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsIndex

from uso_jax.data import images
from uso_jax.data.record import Triplet, task_of
from uso_jax.errors import InputError

OWN_KEYS = {"prompt", "content", "styles", "target", "layout", "task", "key", "meta"}
UNO_KEYS = {"prompt", "image_paths", "image_path", "image_tgt_path"}


class JsonSource:
    """Random access to the items of a JSON file; images are decoded when an item is read."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        try:
            items = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{self.path} does not exist: check the path of the triplets file.") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path} is not readable JSON ({error}): correct it.") from error
        if not isinstance(items, list) or not items:
            raise InputError(f"{self.path} must hold a list with at least one item.")
        # All items are checked now, so that a mistake in the last one does not wait for the end of the first epoch.
        self.items = [_parse(item, f"{self.path}, item {number}") for number, item in enumerate(items)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: SupportsIndex) -> Triplet:
        index = operator.index(index)
        item = self.items[index]
        content = self._image(item["content"], index) if item["content"] else None
        styles = tuple(self._image(path, index) for path in item["styles"])
        return Triplet(
            prompt=item["prompt"],
            content=content,
            styles=styles,
            target=self._image(item["target"], index),
            task=task_of(content=content is not None, styles=bool(styles)),
            layout=item["layout"],
            key=f"{self.path.name}/{index}",
            meta={"target": item["target"]},
        )

    def _image(self, name: str, index: int):
        path = self.path.parent / name
        return images.decode(path, what=f"{path} (item {index} of {self.path})")


def _parse(item: Any, where: str) -> dict[str, Any]:
    """Check one item and give it the names of the first form."""
    if not isinstance(item, Mapping):
        raise InputError(f"{where} is not an object with names and values.")
    uno = "image_tgt_path" in item
    if strange := sorted(set(item) - (UNO_KEYS if uno else OWN_KEYS)):
        raise InputError(f"{where} has unknown entries {', '.join(strange)}; known are {', '.join(sorted(OWN_KEYS))}.")
    if uno:
        references = item.get("image_paths", [item["image_path"]] if "image_path" in item else [])
        references = references if isinstance(references, list) else [references]
        content, styles, target = (references or [None])[0], references[1:], item["image_tgt_path"]
    else:
        content, styles, target = item.get("content"), item.get("styles") or [], item.get("target")
    prompt = item.get("prompt", "")
    if not isinstance(target, str) or not target:
        raise InputError(f'{where} has no "target": name the image file that the model should learn to make.')
    if not isinstance(styles, list) or not all(isinstance(path, str) and path for path in styles):
        raise InputError(f'{where}: "styles" must be a list of image files.')
    if not (content is None or isinstance(content, str)) or not isinstance(prompt, str):
        raise InputError(f'{where}: "content" must be an image file or null, and "prompt" text.')
    layout = item.get("layout", "shifted" if prompt or not content else "preserved")
    if layout not in ("preserved", "shifted"):
        raise InputError(f"{where}: layout is {layout!r}; use preserved or shifted.")
    if layout == "shifted" and not prompt:
        raise InputError(f"{where}: without a preserved layout it needs a prompt; say what the target shows.")
    return {"prompt": prompt, "content": content, "styles": styles, "target": target, "layout": layout}
