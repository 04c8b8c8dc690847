# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Where an image's bytes lie: a file, or a part of a tar, zip or parquet file; local, or at a URL that fsspec opens."""

import contextlib
import functools
import struct
import threading
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

from uso_jax.common.errors import BadExample, InputError
from uso_jax.data.storage import urls
from uso_jax.images import decode as images

_HEADER = 1 << 16  # bytes in which an image's size is looked for first
_ZIP_HEADER = 30
_ROW_GROUPS = 8  # of parquet files that are kept decoded
_READING = threading.Lock()  # a parquet file has one position, which its readers would move


@dataclass(frozen=True)
class Place:
    """Where one image is; `view` is 0 or 1 where it is the left or right one of two squares side by side."""

    file: str  # path or URL
    member: str = ""  # name in an archive, or column of a table
    start: int = 0
    length: int = -1  # bytes in the file; -1: all
    unpacked: int = -1  # bytes of a zip's member; -1: it is no zip
    row: int = -1  # of a parquet file
    view: int = -1

    def __str__(self):
        inside = f", row {self.row}" if self.row >= 0 else f":{self.member}" if self.member else ""
        return f"{self.file}{inside}"

    def pack(self) -> list[Any]:
        """Give the place as short JSON."""
        values = [self.file, self.member, self.start, self.length, self.unpacked, self.row, self.view]
        defaults = [None, "", 0, -1, -1, -1, -1]
        while values[-1] == defaults[len(values) - 1]:
            values.pop()
        return values

    @classmethod
    def unpack(cls, values: list[Any] | None) -> "Place | None":
        """Read what `pack` gave."""
        return None if values is None else cls(*values)

    def read(self, what: str = "") -> bytes:
        """Give the bytes of the image file; `what` is added to its name in messages.

        Raises:
          BadExample: they are not there, too many, or damaged.
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
        """Give the image, resized by `fit`; `what` is added to its name in messages."""
        return images.decode_image(self.read(what), what=f"{self}{what}", number=self.view, fit=fit)

    def size(self) -> tuple[int, int]:
        """Give the image's (height, width), reading no more than needed; of a view only the shape is right."""
        if self.view >= 0:
            return 1, 1
        if self.row < 0 and self.unpacked < 0:
            with contextlib.suppress(OSError, BadExample):
                length = _HEADER if self.length < 0 else min(_HEADER, self.length)
                return images.image_size(urls.read_bytes(self.file, self.start, length, part=True), what=str(self))
        return images.image_size(self.read(), what=str(self))


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
        raise BadExample(f"{place} does not unpack to the {place.unpacked} bytes that the zip file says.")
    return unpacked


def open_table(path: str):
    """Open a parquet file for its columns of text and numbers."""
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


def _cell(place: Place) -> bytes:
    starts = _table(place.file)[1]
    group = next(number for number, start in enumerate(starts) if place.row < start) - 1
    value = _column(place.file, group, place.member)[place.row - starts[group]].as_py()
    value = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(value, bytes) or not value:
        raise BadExample(f"{place} has no image bytes in column {place.member!r}.")
    return value


@functools.lru_cache(maxsize=64)
def _table(path: str):
    """Give an open parquet file and the first row of each row group, with the end."""
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
