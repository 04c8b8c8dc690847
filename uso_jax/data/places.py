# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Where an image's bytes lie: a file, or a part of a tar, zip or parquet file; local, or at a URL that fsspec opens.

Nothing is ever unpacked: a member of an archive is a stretch of the archive's bytes, read when it is asked for.
"""

import contextlib
import functools
import io
import os
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec

from uso_jax.data import images
from uso_jax.errors import BadExample, InputError

MAX_BYTES = 1 << 28  # of one image file, however well it is compressed
_HEADER = 1 << 16  # bytes in which an image's size is looked for first
_TAR_BLOCK, _ZIP_HEADER = 512, 30
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
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
            return _bytes(self.file, self.start, self.length)
        except FileNotFoundError:
            raise BadExample(f"{self}{what} does not exist: check the path.") from None
        except OSError as error:
            raise BadExample(f"{self}{what} cannot be read ({error.strerror or error}).") from error

    def decode(self, what: str = "") -> images.Picture:
        """Give the picture; `what` is added to its name in messages."""
        picture = images.decode(self.read(what), what=f"{self}{what}")
        return picture if self.view < 0 else images.square(picture, self.view, what=f"{self}{what}")

    def size(self) -> tuple[int, int]:
        """Give the picture's (height, width), reading no more than needed; of a view only the shape is right."""
        if self.view >= 0:
            return 1, 1
        if self.row < 0 and self.unpacked < 0:
            with contextlib.suppress(OSError, BadExample):
                start = _bytes(
                    self.file, self.start, _HEADER if self.length < 0 else min(_HEADER, self.length), part=True
                )
                return images.size(start, what=str(self))
        return images.size(self.read(), what=str(self))


# ---------------------------------------------------------------------------------------------------- names and files


def is_url(path: str) -> bool:
    """Tell whether a path is for fsspec, such as gs://bucket/folder."""
    return "://" in path


def check_inside(name: str, where: str) -> str:
    """Give a relative name in its plain form; refuse one that leads out of the folder or archive it stands in."""
    parts = name.replace("\\", "/").split("/")
    if is_url(name) or name.startswith(("/", "\\")) or ".." in parts or "\0" in name or parts[0].endswith(":"):
        raise InputError(
            f"{where} names {name!r}, which lies outside its folder: use relative paths, and set root to the folder"
            " that holds all images."
        )
    return "/".join(part for part in parts if part not in ("", "."))


def join(root: str, name: str, where: str) -> str:
    """Give the path of a file below `root`; `where` says who names it."""
    inside = check_inside(name, where)
    return f"{root.rstrip('/')}/{inside}" if is_url(root) else os.path.join(root, inside)


def parent(path: str) -> str:
    """Give the folder of a path or URL."""
    return path.rpartition("/")[0] if is_url(path) else os.path.dirname(path)


def open_binary(path: str) -> io.IOBase:
    """Open a local or remote file for reading; one that is not there is an InputError."""
    try:
        return fsspec.open(path, "rb").open() if is_url(path) else open(path, "rb")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the path.") from None
    except ImportError as error:
        raise InputError(f"{path}: {error}.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}).") from error


def read_text(path: str) -> str:
    """Give the text of a local or remote file."""
    with open_binary(path) as file:
        try:
            return file.read().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not readable text ({error}): correct it.") from error


def is_folder(path: str) -> bool:
    """Tell whether a folder is there."""
    if not is_url(path):
        return os.path.isdir(path)
    system, inner = _filesystem(path)
    return system.isdir(inner)


def exists(path: str) -> bool:
    """Tell whether a file or folder is there."""
    if not is_url(path):
        return os.path.exists(path)
    system, inner = _filesystem(path)
    return system.exists(inner)


def _filesystem(path: str):
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise InputError(f"{path} cannot be opened ({error}).") from error


def _bytes(path: str, start: int = 0, length: int = -1, part: bool = False) -> bytes:
    """Read a stretch of a file; unless it is only `part` of an image, it must be whole and not too long."""
    if length > MAX_BYTES:
        raise BadExample(f"{path} holds an image of {length} bytes; the limit is {MAX_BYTES}.")
    if is_url(path):
        system, inner = _filesystem(path)
        end = start + (length if length >= 0 else MAX_BYTES + 1)
        data = system.cat_file(inner, start=start or None, end=end)
    else:
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read(length if length >= 0 else MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise BadExample(f"{path} is larger than {MAX_BYTES} bytes, the limit for an image.")
    if len(data) < length and not part:
        raise BadExample(f"{path} ends before byte {start + length}: it is incomplete, copy it again.")
    return data


# ---------------------------------------------------------------------------------------------------- archives


def tree(path: str) -> dict[str, Place]:
    """List the files of a folder, or the members of a tar or zip file, by relative name in order of name.

    Raises:
      InputError: the archive is damaged, compressed as a whole, or has a name that leads out of it or stands twice.
    """
    if path.endswith(_COMPRESSED):
        raise InputError(f"{path} is compressed as a whole, so its images cannot be read one by one: gunzip it first.")
    if path.endswith(".tar"):
        pairs = _tar(path)
    elif path.endswith(".zip"):
        pairs = _zip(path)
    elif is_folder(path):
        pairs = _folder(path)
    else:
        raise InputError(f"{path} is not a folder, a .tar or a .zip file: check the path.")
    found: dict[str, Place] = {}
    for name, place in pairs:
        name = check_inside(name, path)
        if name in found:
            raise InputError(f"{path} holds {name!r} twice: which one is meant is unclear, remove one.")
        found[name] = place
    return dict(sorted(found.items()))


def _folder(path: str) -> Iterator[tuple[str, Place]]:
    if is_url(path):
        system, inner = _filesystem(path)
        for name in system.find(inner):
            yield name.removeprefix(inner).lstrip("/"), Place(str(system.unstrip_protocol(name)))
        return
    for folder, _, names in os.walk(path):
        for name in names:
            whole = os.path.join(folder, name)
            yield os.path.relpath(whole, path).replace(os.sep, "/"), Place(whole)


def _tar(path: str) -> Iterator[tuple[str, Place]]:
    with open_binary(path) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.isdir():
                        continue
                    if not member.isreg():
                        raise InputError(f"{path}: {member.name!r} is a link or device; pack the file itself.")
                    if member.offset_data + member.size > size:
                        raise InputError(f"{path} ends in the middle of {member.name!r}: copy it again.")
                    yield member.name, Place(path, member.name, member.offset_data, member.size)
                end = tar.offset
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is not a readable tar file ({error}): copy it again.") from error
        # tarfile takes a damaged header for the end.
        file.seek(end)
        if any(file.read(_TAR_BLOCK)):
            raise InputError(f"{path} is damaged after byte {end}: the next member cannot be read, copy it again.")


def _zip(path: str) -> Iterator[tuple[str, Place]]:
    with open_binary(path) as file:
        try:
            members = zipfile.ZipFile(file).infolist()
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise InputError(f"{path} is not a readable zip file ({error}): copy it again.") from error
    for member in members:
        if member.is_dir():
            continue
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{path}: {member.filename!r} is encrypted or compressed in a rare way; pack it plainly.")
        if member.file_size > MAX_BYTES:
            raise InputError(
                f"{path}: {member.filename!r} would unpack to {member.file_size} bytes; the limit for an image is"
                f" {MAX_BYTES}: remove it."
            )
        # The central directory's sizes count: those before the data may be left open.
        where = (member.header_offset, member.compress_size, member.file_size)
        yield member.filename, Place(path, member.filename, *where)


def _inflate(place: Place) -> bytes:
    header = _bytes(place.file, place.start, _ZIP_HEADER)
    signature, method, name, extra = struct.unpack("<4s4xH16xHH", header)
    if signature != b"PK\3\4":
        raise BadExample(f"{place} is damaged: copy the zip file again.")
    data = _bytes(place.file, place.start + _ZIP_HEADER + name + extra, place.length)
    if method == zipfile.ZIP_STORED:
        return data
    try:
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, place.unpacked + 1)
    except zlib.error as error:
        raise BadExample(f"{place} is damaged ({error}): copy the zip file again.") from error
    if len(unpacked) != place.unpacked:
        raise BadExample(f"{place} does not unpack to the {place.unpacked} bytes that the zip file says.")
    return unpacked


# ---------------------------------------------------------------------------------------------------- tables


def open_table(path: str):
    """Open a parquet file for its columns of text and numbers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(open_binary(path) if is_url(path) else path)
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
