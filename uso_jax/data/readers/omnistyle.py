# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""OmniStyle: stylised images whose names contain the names of their content and style images.

    FOLDER/content/CONTENT.jpg    FOLDER/style/STYLE.jpg    FOLDER/OmniStyle-150K/CONTENT&&STYLE.jpg

Each part is a folder, or a .tar or .zip file of that name. The layout is preserved and the prompt empty.
"""

import posixpath
from collections.abc import Iterator
from pathlib import Path

from uso_jax.common.folders import is_image
from uso_jax.common.untrusted import printable
from uso_jax.data.readers.source import Item, LeftOut
from uso_jax.data.storage import archives

MARK = "&&"


def read_omnistyle(
    path: str | Path, content: str = "content", style: str = "style", stylised: str = "OmniStyle-150K"
) -> Iterator[Item | LeftOut]:
    """Read the folder; `content`, `style` and `stylised` are the names of its three parts."""
    unused: list[str] = []
    parts = {name: archives.images_by_stem(str(path), name, unused) for name in (content, style, stylised)}
    yield from (LeftOut("not an image", name) for name in unused)
    for stem, target in parts[stylised].items():
        names = [posixpath.splitext(name)[0] if is_image(name) else name for name in stem.split(MARK)]
        if len(names) != 2 or not all(names):
            yield LeftOut(f"name is not CONTENT{MARK}STYLE", f"{stylised}/{stem}")
        elif names[0] not in parts[content]:
            yield LeftOut("content image is missing", f"{content}/{names[0]}")
        elif names[1] not in parts[style]:
            yield LeftOut("style image is missing", f"{style}/{names[1]}")
        else:
            yield Item(
                key=printable(stem),
                target=target,
                content=parts[content][names[0]],
                styles=(parts[style][names[1]],),
                layout="preserved",
                meta={"content": printable(names[0]), "style": printable(names[1])},
            )
