# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""OmniStyle: stylised images whose names say what was stylised, and as what.

    FOLDER/content/CONTENT.jpg    FOLDER/style/STYLE.jpg    FOLDER/OmniStyle-150K/CONTENT&&STYLE.jpg

Each of the three is a folder or a tar of that name, found by what it holds. The layout is preserved and the prompt
empty.
"""

import posixpath
from collections.abc import Iterator
from pathlib import Path

from uso_jax.data import archives, urls
from uso_jax.data.places import Place
from uso_jax.data.readers.source import Item, LeftOut
from uso_jax.errors import InputError

MARK = "&&"
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def read_omnistyle(
    path: str | Path, content: str = "content", style: str = "style", stylised: str = "OmniStyle-150K"
) -> Iterator[Item | LeftOut]:
    """Read the folder; the names of its three parts may be given."""
    parts = {name: by_stem(str(path), name) for name in (content, style, stylised)}
    for stem, target in parts[stylised].items():
        names = [posixpath.splitext(name)[0] if name.lower().endswith(IMAGES) else name for name in stem.split(MARK)]
        if len(names) != 2 or not all(names):
            yield LeftOut(f"its name is not CONTENT{MARK}STYLE")
        elif names[0] not in parts[content]:
            yield LeftOut("its content image is missing")
        elif names[1] not in parts[style]:
            yield LeftOut("its style image is missing")
        else:
            yield Item(
                key=stem,
                target=target,
                content=parts[content][names[0]],
                styles=(parts[style][names[1]],),
                layout="preserved",
                meta={"content": names[0], "style": names[1]},
            )


def by_stem(folder: str, part: str) -> dict[str, Place]:
    """Give the images of a part of a data set, FOLDER/PART or FOLDER/PART.tar or .zip, by name without ending.

    Raises:
      InputError: the part is missing, or two of its images differ only in folder or ending.
    """
    whole = urls.join(folder, part, folder)
    path = next((p for p in (whole, f"{whole}.tar", f"{whole}.zip") if urls.exists(p)), None)
    if path is None:
        raise InputError(
            f"{folder} has no {part}, {part}.tar or {part}.zip: check the path and the names of its parts."
        )
    found: dict[str, Place] = {}
    for name, place in archives.tree(path).items():
        if not name.lower().endswith(IMAGES):
            continue
        stem = posixpath.splitext(posixpath.basename(name))[0]
        if stem in found:
            raise InputError(f"{path} holds two images {stem!r}, so which one is meant is unclear: rename one.")
        found[stem] = place
    return found
