# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The one way in for folders: which files of a folder are read.

Files that desktops and editors leave behind are no data. Links are followed inside the folder and refused outside it.
Only regular files are read: a FIFO would wait for a writer, and a device has no end. Names may be any bytes.
"""

import os
import pathlib
from collections.abc import Iterator

from uso_jax.common.errors import InputError
from uso_jax.common.untrusted import printable

IMAGES = (  # endings of image files
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic",
    ".heif",
)  # fmt: skip
_NAMES = {
    "desktop.ini", "thumbs.db", "ehthumbs.db", "icon\r", "__macosx", "$recycle.bin", "system volume information",
    "@eadir", "lost+found",
}  # fmt: skip
_ENDINGS = ("~", ".swp", ".swo", ".bak", ".crdownload", ".part")


def is_clutter(name: str) -> bool:
    """Return whether a relative name is hidden, or a file or folder of a desktop, an editor or a download."""
    for part in name.replace("\\", "/").split("/"):
        part = part.lower()
        if part in _NAMES or part.endswith(_ENDINGS) or part.startswith("~$"):
            return True
        if (part.startswith(".") and part not in (".", "..")) or (part.startswith("#") and part.endswith("#")):
            return True
    return False


def is_image(name: str) -> bool:
    """Return whether a name ends like an image file."""
    return name.lower().endswith(IMAGES)


def files(
    folder: str | os.PathLike, *, inside: str | os.PathLike | None = None, deep: bool = True
) -> Iterator[tuple[str, str]]:
    """Yield (relative name with "/", path) of every file below a folder, in order of name folder by folder.

    A folder that is reached twice through links is listed once.

    Args:
      folder: the folder.
      inside: the folder that links may not leave; by default `folder`.
      deep: also list the folders in it.

    Raises:
      InputError: the folder cannot be read, a link leads out of it or nowhere, or an entry is a FIFO, socket or device.
    """
    root = _Root(folder if inside is None else inside)
    folder = os.fspath(folder)
    root.check(folder)
    seen, waiting = {os.path.realpath(folder)}, [("", folder)]
    while waiting:
        prefix, path = waiting.pop()
        below = []
        for entry in _entries(path):
            name = f"{prefix}{entry.name}"
            if is_clutter(entry.name):
                continue
            if entry.is_symlink():
                root.check(entry.path)
            if entry.is_dir():
                real = os.path.realpath(entry.path)
                if deep and real not in seen:
                    seen.add(real)
                    below.append((f"{name}/", entry.path))
            elif entry.is_file():
                yield name, entry.path
            else:
                raise InputError(f"{printable(entry.path)} is not a regular file; remove it from the folder")
        waiting.extend(reversed(below))


def located(name: str, folder: str | os.PathLike, where: str) -> str:
    """Return the path of a file that a list names, relative to a folder.

    Backslashes separate folders as on Windows, unless a file has that very name.

    Raises:
      InputError: the path starts with a drive letter; `where` names the list.
    """
    path = os.path.join(folder, name)
    if "\\" not in name and name[1:2] != ":":
        return path
    if os.path.exists(path):
        return path
    if name[1:2] == ":":
        raise InputError(f"{where}: {name!r} has a drive letter of Windows; use paths relative to the list")
    return os.path.join(folder, name.replace("\\", "/"))


class _Root:
    """The folder that links may not leave."""

    def __init__(self, folder: str | os.PathLike):
        self.name, real = os.fspath(folder), pathlib.Path(os.path.realpath(folder))
        self._real = [str(real)]
        if real.parent.name == "snapshots":  # the hub's cache links its files to the folder beside the snapshots
            self._real.append(str(real.parent.parent / "blobs"))

    def check(self, path: str) -> None:
        """Raise an InputError if a link leads nowhere or out of the folder."""
        try:
            real = os.path.realpath(path, strict=True)
        except OSError as error:
            if not os.path.islink(path):
                raise InputError(f"{printable(path)} cannot be read ({error.strerror})") from error
            raise InputError(f"{printable(path)} is a link that leads nowhere; remove it") from error
        if not any(real == root or real.startswith(root.rstrip(os.sep) + os.sep) for root in self._real):
            raise InputError(
                f"{printable(path)} is a link to {printable(real)}, outside {printable(self.name)}; copy what it names"
                " into the folder"
            )


def _entries(path: str) -> list[os.DirEntry]:
    try:
        with os.scandir(path) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{printable(path)} cannot be read ({error.strerror}); check its permissions") from error
