# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Files on this machine or at a URL that fsspec opens, and names that may not lead out of their folder."""

import io
import os

import fsspec

from uso_jax.common.errors import BadExample, InputError

MAX_BYTES = 1 << 28  # of one image file, however well it is compressed


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
    system, inner = filesystem(path)
    return system.isdir(inner)


def exists(path: str) -> bool:
    """Tell whether a file or folder is there."""
    if not is_url(path):
        return os.path.exists(path)
    system, inner = filesystem(path)
    return system.exists(inner)


def filesystem(path: str):
    """Give fsspec's file system of a URL, and the path in it."""
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise InputError(f"{path} cannot be opened ({error}).") from error


def read_bytes(path: str, start: int = 0, length: int = -1, part: bool = False) -> bytes:
    """Read a stretch of a file; unless it is only `part` of an image, it must be whole and not too long."""
    if length > MAX_BYTES:
        raise BadExample(f"{path} holds an image of {length} bytes; the limit is {MAX_BYTES}.")
    if is_url(path):
        system, inner = filesystem(path)
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
