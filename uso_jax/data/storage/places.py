# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Locations of image bytes: a file, or a part of a tar, zip or parquet file; local, or at a URL that fsspec opens."""

import contextlib
import functools
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from uso_jax.common.errors import BadExample, InputError
from uso_jax.common.untrusted import printable
from uso_jax.data.storage import urls
from uso_jax.images import decode as images
from uso_jax.images import opening

_HEADER = 1 << 16  # bytes read first to find the size of an image
_ZIP_HEADER = 30
_ROW_GROUPS = 8  # decoded parquet row groups that are cached
_READING = threading.Lock()  # threads share the file position of a parquet file


_KINDS = (str, str, int, int, int, int, int)  # of the values of `Place.pack`


def _is_wrong(value: Any, kind: type) -> bool:
    return type(value) is not kind


@dataclass(frozen=True)
class Place:
    """The location of one image."""

    file: str  # path or URL
    member: str = ""  # name in an archive, or column of a table
    start: int = 0  # first byte in the file
    length: int = -1  # number of bytes in the file; -1: all
    unpacked: int = -1  # uncompressed size of a zip member; -1: not a zip member
    row: int = -1  # row of a parquet file; -1: not a table
    view: int = -1  # 0 or 1: the left or right of two squares side by side; -1: the whole image

    def __str__(self):
        inside = f", row {self.row}" if self.row >= 0 else f":{self.member}" if self.member else ""
        return printable(f"{self.file}{inside}")

    def pack(self) -> list[Any]:
        """Return the place as a short JSON list, without trailing defaults."""
        values = [self.file, self.member, self.start, self.length, self.unpacked, self.row, self.view]
        defaults = [None, "", 0, -1, -1, -1, -1]
        while values[-1] == defaults[len(values) - 1]:
            values.pop()
        return values

    @classmethod
    def unpack(cls, values: list[Any] | None) -> "Place | None":
        """Invert `pack`.

        Raises:
          InputError: the values are not a place.
        """
        if values is None:
            return None
        if not values or len(values) > len(_KINDS) or any(map(_is_wrong, values, _KINDS)):
            raise InputError(f"{values!r} is not the place of an image; make the file that holds it again.")
        return cls(*values)

    def read(self, what: str = "") -> bytes:
        """Return the bytes of the image file; `what` is appended to its name in error messages.

        Raises:
          BadExample: the file is missing, too large or damaged.
        """
        try:
            if self.row >= 0:
                return _cell(self)
            if self.unpacked >= 0:
                return _inflate(self)
            return urls.read_bytes(self.file, self.start, self.length)
        except FileNotFoundError:
            raise BadExample(f"{self}{what} does not exist: check the path.") from None
        except OSError as error:
            raise BadExample(f"{self}{what} cannot be read ({error.strerror or error}).") from error

    def decode(self, what: str = "", fit: images.Fit | None = None) -> images.Pixels:
        """Return the image, resized by `fit`; `what` is appended to its name in error messages.

        Raises:
          BadExample: the image cannot be read or decoded.
        """
        return images.decode_image(self.read(what), what=f"{self}{what}", number=self.view, fit=fit)

    def size(self) -> tuple[int, int]:
        """Return the (height, width) of the image from its header. For a view, only the aspect ratio is valid.

        Raises:
          BadExample: the image cannot be read.
        """
        if self.view >= 0:
            return 1, 1
        if self.row < 0 and self.unpacked < 0:
            with contextlib.suppress(OSError, BadExample):
                length = _HEADER if self.length < 0 else min(_HEADER, self.length)
                start = urls.read_bytes(self.file, self.start, length, part=True)
                return opening.image_size(start, what=str(self), whole=len(start) < _HEADER)
        return opening.image_size(self.read(), what=str(self))


def _inflate(place: Place) -> bytes:
    header = urls.read_bytes(place.file, place.start, _ZIP_HEADER)
    signature, method, name, extra = struct.unpack("<4s4xH16xHH", header)
    if signature != b"PK\3\4":
        raise BadExample(f"{place} is damaged: copy the zip file again.")
    data = urls.read_bytes(place.file, place.start + _ZIP_HEADER + name + extra, place.length)
    if method == zipfile.ZIP_STORED:
        return data
    try:
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, place.unpacked + 1)
    except zlib.error as error:
        raise BadExample(f"{place} is damaged ({error}): copy the zip file again.") from error
    if len(unpacked) != place.unpacked:
        raise BadExample(f"{place} does not unpack to the {place.unpacked} bytes that the zip file declares.")
    return unpacked


def open_table(path: str):
    """Open a local or remote parquet file.

    Raises:
      InputError: it is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(urls.open_binary(path) if urls.is_url(path) else path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the path.") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a readable parquet file ({str(error).splitlines()[0]}).") from error


def table_batches(table: Any, columns: list[str], path: str) -> Iterator[Any]:
    """Yield the batches of an open parquet file.

    Raises:
      InputError: a page is damaged, or a text is not UTF-8.
    """
    import pyarrow as pa

    try:
        for batch in table.iter_batches(columns=columns):
            batch.validate(full=True)
            yield batch
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged ({str(error).splitlines()[0]}): copy it again.") from error


def _cell(place: Place) -> bytes:
    starts = _table(place.file)[1]
    group = next(number for number, start in enumerate(starts) if place.row < start) - 1
    column, row = _column(place.file, group, place.member), place.row - starts[group]
    if row >= len(column):
        raise BadExample(f"{place} is damaged: its row group has {len(column)} rows only; copy it again.")
    cell = column[row]
    with contextlib.suppress(KeyError, TypeError):  # it is no struct
        cell = cell["bytes"]
    value = cell.as_py()
    if not isinstance(value, bytes) or not value:
        raise BadExample(f"{place} has no image bytes in column {place.member!r}.")
    return value


@functools.lru_cache(maxsize=64)
def _table(path: str):
    """Return an open parquet file and the first row of each row group, followed by the number of rows."""
    table = open_table(path)
    starts = [0]
    for group in range(table.num_row_groups):
        starts.append(starts[-1] + table.metadata.row_group(group).num_rows)
    return table, starts


@functools.lru_cache(maxsize=_ROW_GROUPS)
def _column(path: str, group: int, column: str):
    import pyarrow as pa

    try:
        with _READING:
            return _table(path)[0].read_row_group(group, columns=[column]).column(0)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadExample(f"{path}, row group {group} is damaged ({str(error).splitlines()[0]}).") from error
