# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A plain folder of triplets: the files of a triplet have the same name. There are two layouts.

    FOLDER/target/NAME.png    FOLDER/content/NAME.jpg    FOLDER/style/NAME.png    FOLDER/prompt/NAME.txt
    FOLDER/NAME.png           FOLDER/NAME.content.jpg    FOLDER/NAME.style.png    FOLDER/NAME.txt

The first is read where FOLDER has a part `target`. Content, style and prompt are optional, for all or for some names;
in the first layout, those that lack one are logged. Each part of the first may be a .tar or .zip file; the second may
be one itself. Further style images are style_2, style_3 and so on. Without a prompt the layout is preserved. A mask
(mask/NAME.png or NAME.mask.png) is white where the target counts in full, and as large as the target.
"""

import logging
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from uso_jax.common import folders, untrusted
from uso_jax.common.errors import InputError
from uso_jax.common.untrusted import printable
from uso_jax.data.readers.source import Item, LeftOut
from uso_jax.data.storage import archives
from uso_jax.data.storage.places import Place

_LOG = logging.getLogger("uso_jax.data")
_NAMED = 3  # triplets that a message names
_NO_TARGET = "no target of its name"
_PARTS = ("target", "content", "style", "mask", "prompt")
_SUFFIX = re.compile(r"(.+)\.(target|content|style|style_[2-9]|mask)")


@dataclass
class _Parts:
    """The files of a folder by part and then by name; only parts that exist."""

    images: dict[str, dict[str, Place]]
    prompts: dict[str, str] | None = None
    unused: list[str] = field(default_factory=list)

    @property
    def styles(self) -> list[dict[str, Place]]:
        """The files of style, style_2 and so on, up to the first of them that is missing."""
        names = ["style", *(f"style_{number}" for number in range(2, len(self.images) + 2))]
        end = next(number for number, name in enumerate(names) if name not in self.images)
        return [self.images[name] for name in names[:end]]


def read_folder(path: str | Path, layout: str = "shifted", caption: str = "") -> Iterator[Item | LeftOut]:
    """Read the folder.

    Args:
      path: of the folder.
      layout: of triplets with a prompt.
      caption: prompt of triplets without one.
    """
    path = str(path)
    by_folder = archives.find_part(path, "target") is not None
    parts = _by_folder(path) if by_folder else _by_name(path)
    targets, styles = parts.images["target"], parts.styles
    yield from (
        LeftOut("not an image" if by_folder else "not an image or a .txt file of this folder", name)
        for name in parts.unused
    )
    for part, found in (parts.images | {"prompt": parts.prompts or {}}).items():
        yield from (LeftOut(_NO_TARGET, f"{part}/{name}") for name in found if name not in targets)
    if by_folder:
        _log_absent(path, parts, targets)
    content, masks = parts.images.get("content", {}), parts.images.get("mask", {})
    prompts = parts.prompts or {}
    for name, target in targets.items():
        prompt = prompts.get(name) or caption
        if not prompt and name not in content:
            yield LeftOut("neither a prompt nor a content image (data.folder.caption is a prompt for all)", name)
            continue
        yield Item(
            key=printable(name),
            target=target,
            prompt=prompt,
            content=content.get(name),
            styles=tuple(found[name] for found in styles if name in found),
            layout=layout if prompt else "preserved",
            mask=masks.get(name),
        )


def _log_absent(path: str, parts: _Parts, targets: Mapping[str, Place]) -> None:
    """Log the targets without a file of a part that exists: they have another task than the rest, or no mask."""
    known = {part: parts.images[part] for part in ("content", "style", "mask") if part in parts.images}
    if parts.prompts is not None:
        known["prompt"] = parts.prompts
    for part, found in known.items():
        if absent := [name for name in targets if name not in found]:
            shown = ", ".join(map(printable, absent[:_NAMED])) + ", ..." * (len(absent) > _NAMED)
            _LOG.warning("%s: %d of %d triplets have no %s: %s", path, len(absent), len(targets), part, shown)


def _by_folder(path: str) -> _Parts:
    """Find the files of a folder with one folder or archive for each part."""
    parts = _Parts({})
    numbered = (f"style_{number}" for number in range(2, 10))
    for part in ("target", "content", "style", "mask", *numbered):
        if archives.find_part(path, part) is not None:
            parts.images[part] = archives.images_by_stem(path, part, parts.unused)
    if (found := archives.find_part(path, "prompt")) is None:
        return parts
    parts.prompts = {}
    for name, place in archives.list_members(found, inside=path).items():
        stem, ending = posixpath.splitext(posixpath.basename(name))
        if ending.lower() != ".txt":
            raise InputError(f"{place} is not a .txt file: the folder prompt must hold one text file per triplet.")
        _add(parts.prompts, stem, untrusted.text(place.read(), str(place)).strip(), "prompts", found)
    return parts


def _by_name(path: str) -> _Parts:
    """Find the files of a folder or archive that holds all parts together."""
    members = archives.list_members(path)
    here = [name for name in members if "/" not in name and folders.is_image(name)]
    if not here or any(archives.find_part(path, part) for part in _PARTS):
        archives.images_by_stem(path, "target")  # raises: it is of the other layout, and has no target
    parts = _Parts({"target": {}}, {})
    for name, place in members.items():
        stem, ending = posixpath.splitext(name)
        if "/" in name:
            parts.unused.append(name)
        elif ending.lower() == ".txt":
            _add(parts.prompts, stem, untrusted.text(place.read(), str(place)).strip(), "prompts", path)
        elif folders.is_image(name):
            suffix = _SUFFIX.fullmatch(stem)
            stem, part = suffix.groups() if suffix else (stem, "target")
            _add(parts.images.setdefault(part, {}), stem, place, f"{part} images", path)
        else:
            parts.unused.append(name)
    return parts


def _add(found: dict, name: str, value: object, what: str, path: str) -> None:
    if name in found:
        raise InputError(f"{path} contains two {what} {printable(name)!r}: rename or remove one.")
    found[name] = value
