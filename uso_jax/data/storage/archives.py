# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""List the contents of folders, tar and zip files as places to read from, and write tar files of images.

Nothing is unpacked: a member of an archive is a byte range of the archive, read on demand. Files of desktops and
editors are left out of all of them; see `uso_jax.common.folders` for the other rules of folders.
"""

import io
import pathlib
import posixpath
import struct
import tarfile
import zipfile
from collections.abc import Iterator, Mapping

from uso_jax.common import atomic_files, folders
from uso_jax.common.errors import InputError
from uso_jax.common.untrusted import printable
from uso_jax.data.storage import urls
from uso_jax.data.storage.places import Place
from uso_jax.images import decode

_TAR_BLOCK = 512
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def list_files(path: str, ending: str, unused: list[str] | None = None) -> list[str]:
    """Return the path itself if it ends in `ending`, otherwise the files of the folder that do, in order of name.

    Args:
      path: a file or folder.
      ending: in any case.
      unused: receives the names of the folder's other files.

    Raises:
      InputError: there are none.
    """
    if path.lower().endswith(ending):
        return [path]
    found = []
    for name, place in list_members(path).items():
        if name.lower().endswith(ending):
            found.append(place.file)
        elif unused is not None:
            unused.append(name)
    if not found:
        raise InputError(f"{path} contains no file that ends in {ending}: check the path.")
    return found


def list_members(path: str, inside: str = "") -> dict[str, Place]:
    """List the files of a folder, or the members of a tar or zip file, by relative name in order of name.

    Args:
      path: of the folder or archive.
      inside: the folder that links in a folder may not leave; by default `path`.

    Raises:
      InputError: the archive is damaged or compressed as a whole, or has a duplicate name, one that leads out of it, a
        link or a device; or the folder has a link that leads out of it, a FIFO or a device.
    """
    kind = path.lower()
    if kind.endswith(_COMPRESSED):
        raise InputError(f"{path} is compressed as a whole, so images cannot be read individually: gunzip it first.")
    if kind.endswith(".tar"):
        pairs = _tar(path)
    elif kind.endswith(".zip"):
        pairs = _zip(path)
    elif urls.is_folder(path):
        pairs = _folder(path, inside or path)
    else:
        raise InputError(f"{path} is not a folder, a .tar or a .zip file: check the path.")
    found: dict[str, Place] = {}
    for name, place in pairs:
        name = urls.check_inside(name, path)
        if folders.is_clutter(name):
            continue
        if name in found:
            raise InputError(f"{path} contains {printable(name)!r} twice: remove one.")
        found[name] = place
    return dict(sorted(found.items()))


def find_part(folder: str, part: str) -> str | None:
    """Return FOLDER/PART, FOLDER/PART.tar or FOLDER/PART.zip, whichever exists, or None."""
    whole = urls.join(folder, part, folder)
    return next((path for path in (whole, f"{whole}.tar", f"{whole}.zip") if urls.exists(path)), None)


def images_by_stem(folder: str, part: str, unused: list[str] | None = None) -> dict[str, Place]:
    """Return the images of FOLDER/PART, FOLDER/PART.tar or FOLDER/PART.zip by name without extension.

    Args:
      folder: the folder.
      part: name of the part.
      unused: receives the names of files that are no images, below `folder`.

    Raises:
      InputError: the part is missing, or two of its images differ only in folder or extension.
    """
    path = find_part(folder, part)
    if path is None:
        raise InputError(
            f"{folder} has no {part}, {part}.tar or {part}.zip: check the path and the names of its parts."
        )
    found: dict[str, Place] = {}
    for name, place in list_members(path, inside=folder).items():
        if not folders.is_image(name):
            if unused is not None:
                unused.append(f"{part}/{name}")
            continue
        stem = posixpath.splitext(posixpath.basename(name))[0]
        if stem in found:
            raise InputError(f"{path} contains two images {printable(stem)!r}: rename or remove one.")
        found[stem] = place
    return found


def write_images(path: pathlib.Path, images: Mapping[str, decode.Pixels]) -> None:
    """Write a tar file of images, each as the member NAME.png; an older file stays whole until the new one is."""
    with atomic_files.beside(path) as temporary, tarfile.open(temporary, "w") as archive:
        for name, image in images.items():
            data = decode.encode_png(image)
            member = tarfile.TarInfo(f"{name}.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def _folder(path: str, inside: str) -> Iterator[tuple[str, Place]]:
    if urls.is_url(path):
        system, inner = urls.filesystem(path)
        for name in system.find(inner):
            yield name.removeprefix(inner).lstrip("/"), Place(str(system.unstrip_protocol(name)))
        return
    for name, file in folders.files(path, inside=inside):
        yield name, Place(file)


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
                        raise InputError(f"{path} is truncated: it ends in the middle of {member.name!r}.")
                    yield member.name, Place(path, member.name, member.offset_data, member.size)
                end = tar.offset
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is not a readable tar file ({error}): copy it again.") from error
        # tarfile mistakes a damaged header for the end of the archive.
        file.seek(end)
        if any(file.read(_TAR_BLOCK)):
            raise InputError(f"{path} is damaged after byte {end}: copy it again.")


def _zip(path: str) -> Iterator[tuple[str, Place]]:
    with urls.open_binary(path) as file:
        try:
            members = zipfile.ZipFile(file).infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, IndexError, struct.error) as error:
            raise InputError(f"{path} is not a readable zip file ({error}): copy it again.") from error
    for member in members:
        if not member.filename or member.is_dir():
            continue
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(
                f"{path}: {member.filename!r} is encrypted or uses an unsupported compression; store or deflate it."
            )
        if member.file_size > urls.MAX_BYTES:
            raise InputError(
                f"{path}: {member.filename!r} would unpack to {member.file_size} bytes; the limit for an image is"
                f" {urls.MAX_BYTES}."
            )
        # Sizes come from the central directory: local headers may leave them unset.
        where = (member.header_offset, member.compress_size, member.file_size)
        yield member.filename, Place(path, member.filename, *where)
