# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Read icon sets in Iconify's format from npm tarballs and render icons, all in memory.

A tarball holds package/icons.json: {"prefix", "width"?, "height"?, "icons": {name: {"body": inner SVG, "width"?,
"height"?, "left"?, "top"?}}, "aliases": {name: {"parent": name}}}. Sizes default to those of the set, then to 16.
https://iconify.design/docs/types/iconify-json.html
"""

import contextlib
import functools
import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.data.emoji.renderer import Renderer
from uso_jax.data.emoji.svg import document
from uso_jax.images import opening

MEMBER = "package/icons.json"
MAX_BYTES = 256 * 2**20  # limit of the unpacked size; the largest set in use has 104 MB
MAX_MEMBERS = 256

# Icons that do not show an object: signs, arrows, buttons, clock faces, zodiac signs, keycaps, geometric shapes.
_NO_SUBJECT = re.compile(
    r"^(no|non|input|keycap|japanese-(?!castle|dolls|post)\w+|potable)-|(^|-)(flag|arrow|arrows|button|sign|symbol|mark|"
    r"square|circle|circled|oclock|thirty|suit|asterisk|bars|dash|loop|cross|restroom|registered|copyright)(-|$)|"
    r"^(aries|taurus|gemini|cancer|leo|virgo|libra|scorpio|sagittarius|capricorn|aquarius|pisces|ophiuchus|om|customs|"
    r"information|prohibited|mens-room|womens-room|water-closet|baggage-claim|left-luggage|passport-control|"
    r"currency-exchange|part-alternation-mark|heavy-dollar-sign|diamond-with-a-dot|control-knobs|plus|minus|multiply|divide|"
    r"check-box-with-check)$"
)


@dataclass(frozen=True)
class IconSet:
    """The icons of one design team."""

    name: str
    width: float | int
    height: float | int
    icons: dict[str, dict[str, Any]]
    aliases: dict[str, dict[str, Any]]

    def find(self, name: str) -> str | None:
        """Return the name of the icon's entry, following plain aliases, or None."""
        for _ in range(8):
            if name in self.icons:
                return name
            alias = self.aliases.get(name)
            # Aliases that rotate or mirror their parent are not supported and skipped.
            if alias is None or set(alias) & {"rotate", "hFlip", "vFlip"}:
                return None
            name = alias["parent"]
        return None

    def names(self) -> set[str]:
        """Return all names that `find` resolves."""
        return {name for name in (*self.icons, *self.aliases) if self.find(name) is not None}

    def render(self, name: str, size: int, renderer: Renderer | None = None) -> UInt8[np.ndarray, "size size 4"]:
        """Render an icon as RGBA, fitted into a square.

        Args:
          name: of the icon or of an alias.
          size: side of the image, in pixels.
          renderer: the process that renders; by default one is started for this icon.

        Raises:
          InputError: the icon does not exist, refers to external content, or cannot be rendered.
        """
        icon = self.icons.get(self.find(name))
        what = f"icon {name!r} of the set {self.name!r}"
        if icon is None:
            raise InputError(f"{what} does not exist.")
        width, height = icon.get("width", self.width), icon.get("height", self.height)
        try:
            svg = document(icon["body"], (icon.get("left", 0), icon.get("top", 0), width, height), size)
            with contextlib.nullcontext(renderer) if renderer else Renderer() as chosen:
                png = chosen.render(svg, size)
        except InputError as error:
            raise InputError(f"{what} {error}; use the published set: npm pack @iconify-json/{self.name}") from error
        image = opening.open_image(png, what=what).image
        if image.size != (size, size):
            raise InputError(f"{what} was rendered with {image.size} pixels, not {size} x {size}.")
        return np.asarray(image.convert("RGBA"))


def find_tarballs(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Find the tarball of each named set in a directory.

    Raises:
      InputError: a set is missing or has several versions.
    """
    found: dict[str, Path] = {}
    missing = []
    for name in names:
        # Versions start with a digit, so that "noto" does not match "noto-v1".
        paths = sorted(Path(folder).glob(f"iconify-json-{name}-[0-9]*.tgz"))
        if len(paths) > 1:
            raise InputError(
                f"{folder} holds {len(paths)} versions of {name!r}: keep one of {', '.join(p.name for p in paths)}."
            )
        if paths:
            found[name] = paths[0]
        else:
            missing.append(name)
    if missing:
        packages = " ".join(f"@iconify-json/{name}" for name in missing)
        raise InputError(
            f"icon sets missing in {folder}: {', '.join(missing)}. Download them with:"
            f" mkdir -p {folder} && cd {folder} && npm pack {packages}"
        )
    return found


def read_icon_set(path: Path, name: str) -> IconSet:
    """Read package/icons.json of a tarball, without unpacking anything to disk.

    Raises:
      InputError: the tarball is damaged, or is not the icon set `name`.
    """
    again = f"run npm pack @iconify-json/{name}"
    where = f"{MEMBER} in {path}"
    data = untrusted.json(_read_member(path), dict[str, Any], where, remedy=again, limit=MAX_BYTES)
    icons, aliases = data.get("icons"), data.get("aliases", {})
    if not isinstance(icons, dict) or not isinstance(aliases, dict) or data.get("prefix") != name:
        raise InputError(f"{path}: {MEMBER} is not the icon set {name!r}: {again}.")
    if not all(isinstance(icon, dict) and isinstance(icon.get("body"), str) for icon in icons.values()):
        raise InputError(f"{path}: an icon in {MEMBER} has no body: {again}.")
    if not all(isinstance(alias, dict) and isinstance(alias.get("parent"), str) for alias in aliases.values()):
        raise InputError(f"{path}: an alias in {MEMBER} has no parent: {again}.")
    return IconSet(name, data.get("width", 16), data.get("height", 16), icons, aliases)


def _read_member(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"{path} is not a file: download it with npm pack.")
    try:
        # Streamed: members before the wanted one are skipped, and no header can unpack to more than the limit.
        with gzip.open(path) as unpacked, tarfile.open(fileobj=_Bounded(unpacked, path), mode="r|") as archive:
            for number, member in enumerate(archive):
                if member.name == MEMBER and member.isreg():
                    if member.size > MAX_BYTES:
                        raise InputError(f"{path}: {MEMBER} has {member.size} bytes, more than {MAX_BYTES}.")
                    return archive.extractfile(member).read(MAX_BYTES)
                if number >= MAX_MEMBERS:
                    break
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a readable icon tarball ({error}): download it with npm pack.") from error
    raise InputError(f"{path} has no {MEMBER}: it is not an @iconify-json package.")


class _Bounded:
    """A file that gives at most twice MAX_BYTES."""

    def __init__(self, file: io.BufferedIOBase, path: Path):
        self._file, self._path, self._left = file, path, 2 * MAX_BYTES + (1 << 20)

    def read(self, count: int) -> bytes:
        self._left -= count
        if self._left < 0:
            raise InputError(f"{self._path} unpacks to more than {2 * MAX_BYTES} bytes: download it with npm pack.")
        return self._file.read(count)


def common_subjects(sets: Sequence[IconSet]) -> tuple[str, ...]:
    """Return the names of objects that every set draws, in alphabetical order, without synonyms."""
    names = functools.reduce(set.intersection, (icons.names() for icons in sets))
    names = {name for name in names if not _NO_SUBJECT.search(name)}
    for icons in sets:
        # Synonyms would leak held-out subjects into training. The name of the icon's own entry is kept.
        single = {icons.find(name): name for name in sorted(names, key=lambda name: (name in icons.icons, name))}
        names = set(single.values())
    return tuple(sorted(names))
