# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Records of a benchmark's data: JSON lines or a JSON list with image files, or parquet with embedded images.

Images embedded in parquet are extracted once, to the folder `images_of_parquet` beside the file.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from uso_jax.common import atomic_files, folders, untrusted
from uso_jax.common.errors import InputError

_EXTRACTED = "images_of_parquet"


def read_records(path: pathlib.Path, remedy: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (location, record) from a JSON, JSON lines or parquet file, or from all files of one type in a folder.

    Raises:
      InputError: there is no such file, or it is damaged; `remedy` describes the expected data.
    """
    if path.is_dir():
        for suffix in (".jsonl", ".parquet", ".json"):
            if files := _files(path, suffix) or _files(path / "data", suffix):
                for file in files:
                    yield from read_records(file, remedy)
                return
        raise InputError(f"{path} has no .jsonl, .parquet or .json file; {remedy}")
    if path.suffix.lower() == ".parquet":
        yield from _parquet(path)
    else:
        yield from untrusted.json_items(path, missing=f"{path} does not exist; {remedy}", remedy=remedy)


def _files(folder: pathlib.Path, suffix: str) -> list[pathlib.Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(p for p in found if p.suffix.lower() == suffix and p.is_file() and not folders.is_clutter(p.name))


def _parquet(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=16):
            for row in batch.to_pylist():
                yield f"{path} row {number}", {name: _extracted(value, path.parent) for name, value in row.items()}
                number += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} is not a readable parquet file ({error}); download it again") from error


def _extracted(value: Any, folder: pathlib.Path) -> Any:
    """Replace the images in a cell by the paths of extracted files."""
    if isinstance(value, list):
        return [_extracted(one, folder) for one in value]
    if not (isinstance(value, dict) and isinstance(value.get("bytes"), bytes)):
        return value
    data = value["bytes"]
    suffix = "jpg" if data.startswith(b"\xff\xd8") else "png"
    path = folder / _EXTRACTED / f"{hashlib.sha256(data).hexdigest()[:32]}.{suffix}"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        atomic_files.write_file(path, data)
    return str(path)


def image_paths(values: Any, folder: pathlib.Path, where: str, own: pathlib.Path | None = None) -> tuple[str, ...]:
    """Return image paths from a record, resolved relative to a folder, or to the folder `own` if the file is there.

    Raises:
      InputError: `values` is not a list of paths, or a file is missing; `where` names the record.
    """
    if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
        raise InputError(f"{where}: {values!r} is not a list of image paths")
    located = lambda value: folders.located(value, own, where) if own else ""
    found = tuple(
        path if os.path.isfile(path := located(value)) else folders.located(value, folder, where) for value in values
    )
    for file in found:
        if not os.path.isfile(file):
            raise InputError(f"{where}: image {file!r} does not exist; check the path")
    return found


def text_field(record: Mapping[str, Any], names: Sequence[str], where: str, *, empty: bool = False) -> str:
    """Return the first of several fields that a record has, as text.

    Args:
      record: the record.
      names: names of the field, in order of preference.
      where: names the record in errors.
      empty: accept an empty text.

    Raises:
      InputError: the record has none of the fields.
    """
    for name in names:
        value = record.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and (value or empty):
            return value
    raise InputError(f"{where} has no {' or '.join(map(repr, names))}; add it")
