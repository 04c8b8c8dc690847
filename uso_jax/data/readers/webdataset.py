# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""WebDataset: tar files in which the members of a triplet share a key.

    000017.target.png  000017.content.jpg  000017.style.png  000017.txt      a member is KEY.PART.ENDING
    000017.json                                                             {"prompt": "...", "layout": "shifted"}

The names of the parts can be set, for example `target="stylised"`. Further style images are style2, style3 and so on.
The prompt is KEY.txt, or "prompt" or "caption" in KEY.json.
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
    """Read one tar file, or all in a folder in order of name; the options are the names of the parts."""
    for file in archives.list_files(str(path), ".tar"):
        name = file.rpartition("/")[2].removesuffix(".tar")
        for key, members in _groups(file).items():
            where = f"{file}, {key}"
            parts = {part.rpartition(".")[0]: place for part, place in members.items() if part.endswith(IMAGES)}
            extra = _json(members["json"], where) if "json" in members else {}
            prompt = members["txt"].read().decode("utf-8", "replace").strip() if "txt" in members else ""
            prompt = prompt or extra.get("prompt") or extra.get("caption") or ""
            if target not in parts:
                yield LeftOut(f"no image {target}")
                continue
            if not prompt and content not in parts:
                yield LeftOut("neither a prompt nor a content image")
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
    """Return the members by key and then by the rest of the name. The key ends at the first dot of the file name."""
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
        raise InputError(f"{where}: the .json member is not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: the .json member is not a JSON object.")
    return value
