# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A plain folder of triplets: the images of a triplet have the same name.

    FOLDER/target/NAME.png    FOLDER/content/NAME.jpg    FOLDER/style/NAME.png    FOLDER/prompt/NAME.txt

Content, style and prompt are optional, for all or for some names; those that lack one are logged. Each part may be a
.tar or .zip file. Further style images are in style_2, style_3 and so on. Without a prompt the layout is preserved.
"""

import logging
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.common.untrusted import printable
from uso_jax.data.readers.source import Item, LeftOut
from uso_jax.data.storage import archives
from uso_jax.data.storage.places import Place

_LOG = logging.getLogger("uso_jax.data")
_NAMED = 3  # triplets that a message names
_NO_TARGET = "no target of its name"


def read_folder(path: str | Path, layout: str = "shifted") -> Iterator[Item | LeftOut]:
    """Read the folder; `layout` is that of triplets with a prompt."""
    path, unused = str(path), []
    targets = archives.images_by_stem(path, "target", unused)
    content, styles = _part(path, "content", unused), [_part(path, "style", unused)]
    while more := _part(path, f"style_{len(styles) + 1}", unused):
        styles.append(more)
    prompts = _prompts(path)
    yield from (LeftOut("not an image", name) for name in unused)
    for part, found in (("content", content), ("style", styles[0]), ("prompt", prompts)):
        yield from _unmatched(path, part, found, targets)
    for number, found in enumerate(styles[1:], 2):
        yield from (LeftOut(_NO_TARGET, f"style_{number}/{name}") for name in found if name not in targets)
    content, styles, prompts = content or {}, [found or {} for found in styles], prompts or {}
    for name, target in targets.items():
        prompt = prompts.get(name, "")
        if not prompt and name not in content:
            yield LeftOut("neither a prompt nor a content image", f"target/{name}")
            continue
        yield Item(
            key=printable(name),
            target=target,
            prompt=prompt,
            content=content.get(name),
            styles=tuple(found[name] for found in styles if name in found),
            layout=layout if prompt else "preserved",
        )


def _unmatched(path: str, part: str, found: Mapping | None, targets: Mapping) -> Iterator[LeftOut]:
    """Yield the files of a part without a target, and log the targets without a file of a part that exists."""
    if found is None:
        return
    yield from (LeftOut(_NO_TARGET, f"{part}/{name}") for name in found if name not in targets)
    if absent := [name for name in targets if name not in found]:
        shown = ", ".join(map(printable, absent[:_NAMED])) + ", ..." * (len(absent) > _NAMED)
        _LOG.warning("%s: %d of %d triplets have no %s: %s", path, len(absent), len(targets), part, shown)


def _part(path: str, part: str, unused: list[str]) -> dict[str, Place] | None:
    return archives.images_by_stem(path, part, unused) if archives.find_part(path, part) else None


def _prompts(path: str) -> dict[str, str] | None:
    found = archives.find_part(path, "prompt")
    if found is None:
        return None
    texts = {}
    for name, place in archives.list_members(found, inside=path).items():
        stem, ending = posixpath.splitext(posixpath.basename(name))
        if ending.lower() != ".txt":
            raise InputError(f"{place} is not a .txt file: the folder prompt must hold one text file per triplet.")
        if stem in texts:
            raise InputError(f"{found} contains two prompts {printable(stem)!r}: rename or remove one.")
        texts[stem] = untrusted.text(place.read(), str(place)).strip()
    return texts
