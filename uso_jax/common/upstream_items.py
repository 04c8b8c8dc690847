# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Upstream's second form of an item: the config.json of an example of its app, as one of its lists of items has it.

    {"prompt": "a cat", "image_ref1": "content.webp", "image_ref2": "style.webp", "seed": 3407}
    {"prompt": "a cat", "image_paths": ["content.webp", "style.webp"], "seed": 3407}

Source: `get_examples` in app.py of https://github.com/bytedance/USO. "useage" is the caption of the example.
"""

import re
from collections.abc import Mapping
from typing import Any

from uso_jax.common.errors import InputError

_REFERENCE = re.compile(r"image_ref([1-9])")


def with_image_paths(item: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return an item with image_ref1 (content), image_ref2 (style) and so on as image_paths; others are unchanged.

    Raises:
      InputError: it has both forms, or a reference is not a path; `where` names the item.
    """
    numbers = {int(found[1]): name for name in item if (found := _REFERENCE.fullmatch(name))}
    if not numbers:
        return item
    if "image_paths" in item:
        raise InputError(f"{where} has image_paths and {numbers[min(numbers)]}; remove one of the two")
    paths = [item[numbers[number]] if number in numbers else "" for number in range(1, max(numbers) + 1)]
    paths = [path or "" for path in paths]
    if not all(isinstance(path, str) for path in paths):
        raise InputError(f"{where}: image_ref1, image_ref2 ... must be paths of images")
    rest = {name: value for name, value in item.items() if name not in (*numbers.values(), "useage")}
    return rest | {"image_paths": [paths[0], *filter(None, paths[1:])]}
