# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A model's images of a benchmark's items, and the problems found with them.

Image j of item KEY is FOLDER/KEY_j.png, or FOLDER/KEY.png if the item has one image. Extensions jpg, jpeg and webp work
too. Images of other programs keep their names (`naming`).
"""

import functools
import hashlib
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from uso_jax.common import folders, progress
from uso_jax.common.errors import BadExample, InputError
from uso_jax.common.untrusted import printable
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.naming import OWN, SUFFIXES, Naming
from uso_jax.images import decode, opening
from uso_jax.images.decode import Pixels


@dataclass(frozen=True)
class Sample:
    """A valid image of an item; `sha256` is the digest of its file."""

    item: EvalItem
    number: int
    path: pathlib.Path
    sha256: str

    @property
    def name(self) -> tuple[str, int]:
        return self.item.key, self.number

    @property
    def pixels(self) -> Pixels:
        return pixels(str(self.path))


@dataclass
class Gallery:
    """The contents of an image folder.

    Attributes:
      samples: valid images.
      problems: what is wrong with others, by (key, number).
      extra: files that no item asks for; not of another program's folder, which may hold anything.
      notes: kind of image that other programs read differently -> its files, among images and references.
    """

    samples: list[Sample] = field(default_factory=list)
    problems: dict[tuple[str, int], str] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)


@functools.lru_cache(maxsize=128)
def pixels(path: str) -> Pixels:
    """Return the pixels of an image file, read-only. The most recent ones are cached, because several metrics use them.

    Raises:
      BadExample: the file cannot be decoded.
    """
    image = decode.decode_image(pathlib.Path(path), what=f"image {path!r}")
    image.flags.writeable = False
    return image


@functools.lru_cache(maxsize=100_000)
def file_digest(path: str) -> str:
    """Return the SHA-256 of a file in hex; cached per process."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_images(
    folder: pathlib.Path | str, items: Sequence[EvalItem], *, any_size: bool = False, naming: Naming = OWN
) -> Gallery:
    """Find the images of items and check their headers; `unreadable` also decodes one.

    Args:
      folder: contains the images.
      items: the expected items.
      any_size: accept images whose size differs from the item's; by default this is a problem.
      naming: of the files.

    Raises:
      InputError: the folder does not exist.
    """
    folder, found = pathlib.Path(folder), Gallery()
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of images; run the stage generate, or pass a folder with --images")
    files = {name: pathlib.Path(path) for name, path in folders.files(folder) if name.lower().endswith(SUFFIXES)}
    used = set()
    for index, one in enumerate(progress.bar(items, "checking images", unit="item", leave=False)):
        for number in range(one.num_images):
            names = [name for name in naming.names(one, number, index) if name in files]
            used.update(names)
            reason = _reason(names, files, one, any_size)
            if reason:
                found.problems[one.key, number] = reason
            else:
                path = files[names[0]]
                found.samples.append(Sample(one, number, path, file_digest(str(path))))
    found.extra = [] if naming.pattern else sorted(map(printable, files.keys() - used))
    paths = [str(sample.path) for sample in found.samples] + [path for one in items for path in one.references]
    for path in dict.fromkeys(paths):
        for kind in _kinds(path, file_digest(path)):
            found.notes.setdefault(kind, []).append(printable(path))
    return found


@functools.lru_cache(maxsize=100_000)
def _kinds(path: str, digest: str) -> tuple[str, ...]:
    try:
        return opening.peculiarities(pathlib.Path(path), what=f"image {path!r}")
    except BadExample:  # which is told where it is decoded
        return ()


def unreadable(sample: Sample) -> str:
    """Return why an image cannot be decoded, for example because it is truncated, or "" if it can."""
    try:
        sample.pixels  # noqa: B018 (fills the cache for the metrics)
    except BadExample as error:
        return str(error)
    return ""


def _reason(names: list[str], files: dict[str, pathlib.Path], one: EvalItem, any_size: bool) -> str:
    """Return the problem of an item's image, or "" if it is valid."""
    if not names:
        return "the image is missing"
    if len(names) > 1:
        return f"there are several images: {', '.join(names)}"
    try:
        height, width = opening.image_size(files[names[0]], what=f"image {str(files[names[0]])!r}")
    except BadExample as error:
        return str(error)
    wanted = (one.width, one.height)
    if not any_size and 0 not in wanted and (width, height) != wanted:
        return f"the image is {width} x {height}, not {one.width} x {one.height}"
    return ""
