# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Webdataset: tar files in which the members of one triplet stand together and share a key.

    000017.target.png  000017.content.jpg  000017.style.png  000017.txt      a member is KEY.PART.ENDING
    000017.json                                                             {"prompt": "...", "layout": "shifted"}

Which part is which can be said, for sets with other names: `target="stylised"`. More style images are style2, style3
and so on. The prompt is KEY.txt or the "prompt" (or "caption") of KEY.json.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from uso_jax.common.errors import InputError
from uso_jax.data.readers.source import Item, LeftOut
from uso_jax.data.storage import archives
from uso_jax.data.storage.archives import IMAGES
from uso_jax.data.storage.places import Place
from uso_jax.data.triplet import check_words


def read_webdataset(
    path: str | Path, target: str = "target", content: str = "content", style: str = "style"
) -> Iterator[Item | LeftOut]:
    """Read a tar file, or all of a folder in order of name."""
    for file in archives.list_files(str(path), ".tar"):
        name = file.rpartition("/")[2].removesuffix(".tar")
        for key, members in _groups(file).items():
            where = f"{file}, {key}"
            parts = {part.rpartition(".")[0]: place for part, place in members.items() if part.endswith(IMAGES)}
            extra = _json(members["json"], where) if "json" in members else {}
            prompt = members["txt"].read().decode("utf-8", "replace").strip() if "txt" in members else ""
            prompt = prompt or extra.get("prompt") or extra.get("caption") or ""
            if target not in parts:
                yield LeftOut(f"it has no image {target}")
                continue
            if not prompt and content not in parts:
                yield LeftOut("it has neither a prompt nor a content image")
                continue
            numbered = sorted(part for part in parts if re.fullmatch(rf"{re.escape(style)}\d*", part))
            layout = extra.get("layout", "shifted" if prompt else "preserved")
            check_words(prompt, layout, where)
            yield Item(
                key=f"{name}/{key}",
                target=parts[target],
                prompt=prompt,
                content=parts.get(content),
                styles=tuple(parts[part] for part in numbered),
                layout=layout,
            )


def _groups(file: str) -> dict[str, dict[str, Place]]:
    """Give the members by key and then by what follows it; the key ends at the first dot of the file's name."""
    groups: dict[str, dict[str, Place]] = {}
    for name, place in archives.list_members(file).items():
        folder, _, base = name.rpartition("/")
        key, _, rest = base.partition(".")
        groups.setdefault(f"{folder}/{key}" if folder else key, {})[rest.lower()] = place
    return groups


def _json(place: Place, where: str) -> dict:
    try:
        value = json.loads(place.read())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: its .json is not readable ({error}).") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: its .json is not an object with names and values.")
    return value
