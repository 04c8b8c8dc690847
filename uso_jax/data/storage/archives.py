# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a folder, tar or zip file holds, as places to read from; nothing is ever unpacked.

A member of an archive is a stretch of the archive's bytes, read when it is asked for.
"""

import io
import os
import posixpath
import tarfile
import zipfile
from collections.abc import Iterator

from uso_jax.common.errors import InputError
from uso_jax.data.storage import urls
from uso_jax.data.storage.places import Place

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_TAR_BLOCK = 512
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def list_files(path: str, ending: str) -> list[str]:
    """Give a file, or those of a folder that end so, in order of name."""
    if path.endswith(ending):
        return [path]
    found = [place.file for name, place in list_members(path).items() if name.endswith(ending)]
    if not found:
        raise InputError(f"{path} holds no file that ends in {ending}: check the path.")
    return found


def list_members(path: str) -> dict[str, Place]:
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
    elif urls.is_folder(path):
        pairs = _folder(path)
    else:
        raise InputError(f"{path} is not a folder, a .tar or a .zip file: check the path.")
    found: dict[str, Place] = {}
    for name, place in pairs:
        name = urls.check_inside(name, path)
        if name in found:
            raise InputError(f"{path} holds {name!r} twice: which one is meant is unclear, remove one.")
        found[name] = place
    return dict(sorted(found.items()))


def images_by_stem(folder: str, part: str) -> dict[str, Place]:
    """Give the images of a part of a data set, FOLDER/PART or FOLDER/PART.tar or .zip, by name without ending.

    Raises:
      InputError: the part is missing, or two of its images differ only in folder or ending.
    """
    whole = urls.join(folder, part, folder)
    path = next((p for p in (whole, f"{whole}.tar", f"{whole}.zip") if urls.exists(p)), None)
    if path is None:
        raise InputError(
            f"{folder} has no {part}, {part}.tar or {part}.zip: check the path and the names of its parts."
        )
    found: dict[str, Place] = {}
    for name, place in list_members(path).items():
        if not name.lower().endswith(IMAGES):
            continue
        stem = posixpath.splitext(posixpath.basename(name))[0]
        if stem in found:
            raise InputError(f"{path} holds two images {stem!r}, so which one is meant is unclear: rename one.")
        found[stem] = place
    return found


def _folder(path: str) -> Iterator[tuple[str, Place]]:
    if urls.is_url(path):
        system, inner = urls.filesystem(path)
        for name in system.find(inner):
            yield name.removeprefix(inner).lstrip("/"), Place(str(system.unstrip_protocol(name)))
        return
    for folder, _, names in os.walk(path):
        for name in names:
            whole = os.path.join(folder, name)
            yield os.path.relpath(whole, path).replace(os.sep, "/"), Place(whole)


def _tar(path: str) -> Iterator[tuple[str, Place]]:
    with urls.open_binary(path) as file:
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
    with urls.open_binary(path) as file:
        try:
            members = zipfile.ZipFile(file).infolist()
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise InputError(f"{path} is not a readable zip file ({error}): copy it again.") from error
    for member in members:
        if member.is_dir():
            continue
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{path}: {member.filename!r} is encrypted or compressed in a rare way; pack it plainly.")
        if member.file_size > urls.MAX_BYTES:
            raise InputError(
                f"{path}: {member.filename!r} would unpack to {member.file_size} bytes; the limit for an image is"
                f" {urls.MAX_BYTES}: remove it."
            )
        # The central directory's sizes count: those before the data may be left open.
        where = (member.header_offset, member.compress_size, member.file_size)
        yield member.filename, Place(path, member.filename, *where)
