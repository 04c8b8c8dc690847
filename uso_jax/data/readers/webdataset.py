# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""WebDataset: tar files in which the members of a triplet share a key.

    000017.target.png  000017.content.jpg  000017.style.png  000017.txt      a member is KEY.PART.ENDING
    000017.json                                                             {"prompt": "...", "layout": "shifted"}

The names of the parts can be set, for example `target="stylised"`. Further style images are style2, style3 and so on.
The prompt is KEY.txt, or "prompt" or "caption" in KEY.json.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from uso_jax.common import untrusted
from uso_jax.common.folders import is_image
from uso_jax.common.untrusted import printable
from uso_jax.data.readers.source import Item, LeftOut
from uso_jax.data.storage import archives
from uso_jax.data.storage.places import Place
from uso_jax.data.triplet import check_words


def read_webdataset(
    path: str | Path, target: str = "target", content: str = "content", style: str = "style"
) -> Iterator[Item | LeftOut]:
    """Read one tar file, or all in a folder in order of name; the options are the names of the parts."""
    unused: list[str] = []
    files = archives.list_files(str(path), ".tar", unused)
    yield from (LeftOut("not a .tar file", name) for name in unused)
    for file in files:
        name = posixpath.splitext(file.rpartition("/")[2])[0]
        for key, members in _groups(file).items():
            where = f"{file}, {printable(key)}"
            parts = {part.rpartition(".")[0]: place for part, place in members.items() if is_image(part)}
            extra = untrusted.json(members["json"].read(), dict, where) if "json" in members else {}
            prompt = untrusted.text(members["txt"].read(), f"{where}.txt").strip() if "txt" in members else ""
            prompt = prompt or extra.get("prompt") or extra.get("caption") or ""
            if target not in parts:
                yield LeftOut(f"no image {target}", f"{name}/{key}")
                continue
            if not prompt and content not in parts:
                yield LeftOut("neither a prompt nor a content image", f"{name}/{key}")
                continue
            numbered = sorted(part for part in parts if re.fullmatch(rf"{re.escape(style)}\d*", part))
            for part in members:
                if part not in ("json", "txt") and part.rpartition(".")[0] not in (target, content, *numbered):
                    yield LeftOut(f"not one of {target}, {content}, {style}, txt and json", f"{name}/{key}.{part}")
            layout = extra.get("layout", "shifted" if prompt else "preserved")
            check_words(prompt, layout, where)
            yield Item(
                key=printable(f"{name}/{key}"),
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
