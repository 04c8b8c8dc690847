# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Access to local files and URLs (through fsspec), and checks of relative names."""

import contextlib
import functools
import io
import os
import pathlib
import stat
from collections.abc import Callable, Iterator

import fsspec

from uso_jax.common import untrusted
from uso_jax.common.errors import BadExample, InputError

MAX_BYTES = 1 << 28  # limit of one image file, before and after decompression


def is_url(path: str) -> bool:
    """Return whether a path is a URL for fsspec, such as gs://bucket/folder."""
    return "://" in path


def check_inside(name: str, where: str) -> str:
    """Normalise a relative name.

    Raises:
      InputError: it leads out of the folder or archive that contains it; `where` is the prefix of the message.
    """
    # Most names are plain, and a list has millions of them.
    plain = "/." not in name and "//" not in name and ":" not in name and "\\" not in name and "\0" not in name
    if plain and name[:1] not in ("", ".", "/") and name[-1] != "/":
        return name
    parts = name.replace("\\", "/").split("/")
    if is_url(name) or name.startswith(("/", "\\")) or ".." in parts or "\0" in name or parts[0].endswith(":"):
        raise InputError(
            f"{where} names {name!r}, which is outside its folder: use relative paths, and set root to the folder"
            " that contains all images."
        )
    return "/".join(part for part in parts if part not in ("", "."))


def join(root: str, name: str, where: str) -> str:
    """Return the path of a relative name below `root`.

    Raises:
      InputError: the name leads out of `root`; `where` is the prefix of the message.
    """
    return prefix(root) + check_inside(name, where)


@functools.lru_cache(maxsize=64)
def prefix(root: str) -> str:
    """Return what `join` puts before names below `root`."""
    return f"{root.rstrip('/')}/" if is_url(root) else os.path.join(root, "")


def parent(path: str) -> str:
    """Return the parent folder of a path or URL."""
    return path.rpartition("/")[0] if is_url(path) else os.path.dirname(path)


def open_binary(path: str) -> io.IOBase:
    """Open a local or remote file for reading.

    Raises:
      InputError: it is missing, is no regular file, or cannot be read.
    """
    try:
        if not is_url(path):
            return _open_local(path)
        with _store_errors():
            return fsspec.open(path, "rb").open()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the path.") from None
    except ImportError as error:
        raise InputError(f"{path}: {error}.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}).") from error


def read_text(path: str) -> str:
    """Read a local or remote UTF-8 text file.

    Raises:
      InputError: it is missing, cannot be read, is too large, or is not UTF-8.
    """
    if not is_url(path):
        return untrusted.text(pathlib.Path(path), limit=untrusted.LIST_LIMIT)
    with open_binary(path) as file:
        try:
            with _store_errors():
                found = file.read(untrusted.LIST_LIMIT + 1)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error}): try again later.") from error
    return untrusted.text(found, path, limit=untrusted.LIST_LIMIT)


def is_folder(path: str) -> bool:
    """Return whether a local or remote folder exists."""
    return _ask(path, os.path.isdir, "isdir")


def exists(path: str) -> bool:
    """Return whether a local or remote file or folder exists."""
    return _ask(path, os.path.exists, "exists")


def _ask(path: str, local: Callable[[str], bool], remote: str) -> bool:
    if not is_url(path):
        return local(path)
    system, inner = filesystem(path)
    try:
        with _store_errors():
            return getattr(system, remote)(inner)
    except OSError as error:
        raise InputError(f"{path} cannot be reached ({error}): check the address, or try again later.") from error


def filesystem(path: str):
    """Return fsspec's file system of a URL and the path in it."""
    try:
        with _store_errors():
            return fsspec.core.url_to_fs(path)
    except (ImportError, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be opened ({error}).") from error


def read_bytes(path: str, start: int = 0, length: int = -1, part: bool = False) -> bytes:
    """Read a byte range of a file.

    Args:
      path: local path or URL.
      start: first byte.
      length: number of bytes; -1 means to the end.
      part: accept fewer bytes, when only the start of an image is needed.

    Raises:
      BadExample: there are more than MAX_BYTES bytes, or fewer than `length`.
      OSError: the file cannot be read.
    """
    if length > MAX_BYTES:
        raise BadExample(f"{path} contains an image of {length} bytes; the limit is {MAX_BYTES}.")
    if is_url(path):
        system, inner = filesystem(path)
        end = start + (length if length >= 0 else MAX_BYTES + 1)
        with _store_errors():
            data = system.cat_file(inner, start=start or None, end=end)
    else:
        with _open_local(path) as file:
            file.seek(start)
            data = file.read(length if length >= 0 else MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise BadExample(f"{path} is larger than {MAX_BYTES} bytes, the limit for an image.")
    if len(data) < length and not part:
        raise BadExample(f"{path} ends before byte {start + length}: it is truncated, copy it again.")
    return data


def _open_local(path: str) -> io.BufferedReader:
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would wait for a writer
        raise OSError("it is not a file")
    return open(path, "rb")


@contextlib.contextmanager
def _store_errors() -> Iterator[None]:
    """Raise the errors of stores as OSError: each store's library has classes for its failed requests."""
    try:
        yield
    except (ImportError, OSError, ValueError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
