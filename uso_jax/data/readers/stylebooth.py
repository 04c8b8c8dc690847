# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""StyleBooth: pairs of a plain image and its stylised version, with the name of the style.

    FOLDER/train.csv     EnStyle,ZhStyle,ShortStyleName,Target:FILE,Source:FILE,SearchResult:DICT
    FOLDER.zip           the same, packed

The last column is a dictionary with unquoted commas, so a row is split at its first five commas only. There are no
style images; the next stylised image of the same style can serve as one.
"""

import collections
import posixpath
from collections.abc import Iterator
from pathlib import Path

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.data.readers.source import Item, LeftOut
from uso_jax.data.storage import archives, urls

HEADER = ("EnStyle", "ZhStyle", "ShortStyleName", "Target:FILE", "Source:FILE")


def read_stylebooth(
    path: str | Path, prompt: str = "turn it into {style}", styles: bool = False, table: str = "train.csv"
) -> Iterator[Item | LeftOut]:
    """Read the folder or zip file.

    Args:
      path: the folder or zip file with the table and its images.
      prompt: template of the instruction; {style} is the name of the style.
      styles: use the next stylised image of the same style as style image, with an empty prompt.
      table: file name of the table.
    """
    files, used = archives.list_members(str(path)), set()
    found = [name for name in files if posixpath.basename(name) == table]
    if len(found) != 1:
        raise InputError(f"{path} holds {len(found)} files {table}, expected one: set table to the one to read.")
    folder = posixpath.dirname(found[0])
    where = f"{path}, {found[0]}"
    lines = untrusted.lines(untrusted.text(files[found[0]].read(), where)) or [""]
    used.add(found[0])
    if tuple(name.strip() for name in lines[0].split(",")[:5]) != HEADER:
        raise InputError(f"{path}: {found[0]} does not start with the columns {', '.join(HEADER)}.")
    rows, of_style = [], collections.defaultdict(list)
    for number, line in enumerate(lines[1:], start=1):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split(",", 5)]
        if len(cells) < 5 or not all((cells[0], cells[3], cells[4])):
            yield LeftOut("incomplete row", f"row {number}")
            continue
        target, source = (
            posixpath.join(folder, urls.check_inside(cell, f"{where}, row {number}")) for cell in cells[3:5]
        )
        if target not in files or source not in files:
            yield LeftOut("an image is missing", f"row {number}")
            continue
        used |= {target, source}
        of_style[cells[0]].append(len(rows))
        rows.append((number, cells[0], files[target], files[source]))
    yield from (LeftOut("not in the table", name) for name in files if name not in used)
    places_of = {row: i for members in of_style.values() for i, row in enumerate(members)}
    for place, (number, style, target, source) in enumerate(rows):
        members = of_style[style]
        if styles and len(members) < 2:
            yield LeftOut("no other image of its style")
            continue
        other = rows[members[(places_of[place] + 1) % len(members)]][2]
        yield Item(
            key=str(number),
            target=target,
            prompt="" if styles else prompt.replace("{style}", style),
            content=source,
            styles=(other,) if styles else (),
            layout="preserved",
            meta={"style": style},
        )
