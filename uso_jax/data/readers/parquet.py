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
        import pyarrow as pa
        import pyarrow.compute as pc

        table, number = places.open_table(file), 0
        names = table.schema_arrow.names
        if missing := [name for name in ("prompt", "target") if name not in names]:
            raise InputError(f"{file} has no column {', '.join(missing)}; its columns are {', '.join(names)}.")
        images = [n for n in names if n in ("target", "content", "style") or n.startswith("style_")]
        folder, stem = root or urls.parent(file), printable(posixpath.splitext(file.rpartition("/")[2])[0])
        for batch in _batches(table, [*images, *(n for n in ("prompt", "layout") if n in names)], file):
            columns = {}
            for name in batch.schema.names:
                column = batch.column(name)
                # Only whether an image has bytes: the bytes themselves could exhaust memory.
                if pa.types.is_struct(column.type) or pa.types.is_binary(column.type):
                    data = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
                    paths = (
                        pc.struct_field(column, "path").to_pylist() if _has_path(column.type) else [None] * len(data)
                    )
                    has = data.is_valid().to_pylist()
                    columns[name] = [True if h else p for h, p in zip(has, paths, strict=True)]
                else:
                    columns[name] = column.to_pylist()
            for values in zip(*columns.values(), strict=True):
                row = dict(zip(columns, values, strict=True))
                yield _item(row, file, number, folder, images, f"{stem}/{number}")
                number += 1


def _batches(table: Any, columns: list[str], file: str) -> Iterator[Any]:
    """Yield the batches of a table; a damaged page is an InputError."""
    import pyarrow as pa

    try:
        for batch in table.iter_batches(columns=columns):
            batch.validate(full=True)  # also that texts are UTF-8
            yield batch
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} is damaged ({str(error).splitlines()[0]}): copy it again.") from error


def _has_path(kind: Any) -> bool:
    return any(kind.field(i).name == "path" for i in range(kind.num_fields))


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
