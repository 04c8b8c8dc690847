# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Triplets in parquet files, with images as bytes, as {"bytes", "path"} structs, or as file names.

    prompt text, target image, content image or null, style image or null (or style_1, style_2 ...), layout text

Only prompt and target are required. File names are relative to the directory of the parquet file, or to `root`.
"""

import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from uso_jax.common.errors import InputError
from uso_jax.common.untrusted import printable
from uso_jax.data.readers.source import Item, LeftOut
from uso_jax.data.storage import archives, places, urls
from uso_jax.data.storage.places import Place
from uso_jax.data.triplet import check_words


def read_parquet(path: str | Path, root: str = "") -> Iterator[Item | LeftOut]:
    """Read one parquet file, or all in a folder."""
    unused: list[str] = []
    files = archives.list_files(str(path), ".parquet", unused)
    yield from (LeftOut("not a .parquet file", name) for name in unused)
    for file in files:
        table, number = places.open_table(file), 0
        names = table.schema_arrow.names
        if missing := [name for name in ("prompt", "target") if name not in names]:
            raise InputError(f"{file} has no column {', '.join(missing)}; its columns are {', '.join(names)}.")
        images = [n for n in names if n in ("target", "content", "style") or n.startswith("style_")]
        folder, stem = root or urls.parent(file), printable(posixpath.splitext(file.rpartition("/")[2])[0])
        for batch in places.table_batches(table, [*images, *(n for n in ("prompt", "layout") if n in names)], file):
            columns = {}
            for name in batch.schema.names:
                read, where = _references if name in images else _texts, f"{file}, column {name}"
                columns[name] = read(batch.column(name), where)
            for values in zip(*columns.values(), strict=True):
                row = dict(zip(columns, values, strict=True))
                yield _item(row, file, number, folder, images, f"{stem}/{number}")
                number += 1


def _references(column: Any, where: str) -> list[bool | str | None]:
    """Return for each image of a column True if it has bytes, its file name, or None.

    The bytes themselves could exhaust memory.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    parts = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)} if pa.types.is_struct(kind) else {}
    if _is_binary(parts.get("bytes", kind)):
        data = pc.struct_field(column, "bytes") if parts else column
        names = _texts(pc.struct_field(column, "path"), where) if "path" in parts else [None] * len(column)
        return [True if has else name for has, name in zip(data.is_valid().to_pylist(), names, strict=True)]
    if parts:
        raise InputError(f'{where} is a {kind}: a struct needs "bytes", which are binary')
    return _texts(column, where)


def _texts(column: Any, where: str) -> list[str | None]:
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
        raise InputError(f"{where} is a {column.type}: prompts, layouts and file names are strings, images are binary")
    return column.to_pylist()


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _item(row: Mapping[str, Any], file: str, number: int, folder: str, images: list[str], key: str) -> Item:
    where = f"{file}, row {number}"
    place = lambda name: (
        None
        if not row.get(name)
        else Place(file, name, row=number)
        if row[name] is True
        else Place(urls.join(folder, row[name], where))
    )
    prompt, target, content = row["prompt"] or "", place("target"), place("content")
    layout = row.get("layout") or ("shifted" if prompt or content is None else "preserved")
    if target is None:
        raise InputError(f"{where} has no target image.")
    check_words(prompt, layout, where)
    styles = tuple(place(name) for name in sorted(images) if name.startswith("style") and row.get(name))
    return Item(key, target, prompt, content, styles, layout)
