# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A plain folder of triplets: the images of a triplet have the same name.

    FOLDER/target/NAME.png    FOLDER/content/NAME.jpg    FOLDER/style/NAME.png    FOLDER/prompt/NAME.txt

Content, style and prompt are optional, for all or for some names. Each part may be a .tar or .zip file. Further style
images are in style_2, style_3 and so on. Without a prompt the layout is preserved.
"""

import posixpath
from collections.abc import Iterator
from pathlib import Path

from uso_jax.common.errors import InputError
from uso_jax.data.readers.source import Item, LeftOut
from uso_jax.data.storage import archives, urls
from uso_jax.data.storage.places import Place


def read_folder(path: str | Path, layout: str = "shifted") -> Iterator[Item | LeftOut]:
    """Read the folder; `layout` is that of triplets with a prompt."""
    path = str(path)
    targets, content = archives.images_by_stem(path, "target"), _part(path, "content")
    styles = [_part(path, "style")]
    while more := _part(path, f"style_{len(styles) + 1}"):
        styles.append(more)
    prompts = _prompts(path)
    for name, target in targets.items():
        prompt = prompts.get(name, "")
        if not prompt and name not in content:
            yield LeftOut("neither a prompt nor a content image")
            continue
        yield Item(
            key=name,
            target=target,
            prompt=prompt,
            content=content.get(name),
            styles=tuple(part[name] for part in styles if name in part),
            layout=layout if prompt else "preserved",
        )


def _part(path: str, part: str) -> dict[str, Place]:
    whole = urls.join(path, part, path)
    there = any(urls.exists(f"{whole}{ending}") for ending in ("", ".tar", ".zip"))
    return archives.images_by_stem(path, part) if there else {}


def _prompts(path: str) -> dict[str, str]:
    whole = urls.join(path, "prompt", path)
    if not urls.exists(whole):
        return {}
    texts = {}
    for name, place in archives.list_members(whole).items():
        stem, ending = posixpath.splitext(posixpath.basename(name))
        if ending != ".txt":
            raise InputError(f"{place} is not a .txt file: the folder prompt must hold one text file per triplet.")
        try:
            texts[stem] = place.read().decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise InputError(f"{place} is not readable text ({error}): save it as UTF-8.") from error
    return texts
