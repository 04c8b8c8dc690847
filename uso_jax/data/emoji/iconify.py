# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Icon sets in Iconify's layout: reading the npm tarballs and rendering icons, all in memory.

A tarball holds package/icons.json: {"prefix", "width"?, "height"?, "icons": {name: {"body": inner SVG, "width"?,
"height"?, "left"?, "top"?}}, "aliases": {name: {"parent": name}}}. A size falls back from icon to set to 16.
https://iconify.design/docs/types/iconify-json.html
"""

import functools
import io
import json
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from uso_jax.common.errors import InputError

MEMBER = "package/icons.json"
MAX_BYTES = 256 * 2**20  # the largest of the sets in use unpacks to 104 MB
MAX_MEMBERS = 256

# What is no thing: signs, arrows, buttons, clock faces, zodiac signs, keycaps, plain geometric shapes.
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
    """One design team's icons."""

    name: str
    width: float | int
    height: float | int
    icons: dict[str, dict[str, Any]]
    aliases: dict[str, dict[str, Any]]

    def find(self, name: str) -> str | None:
        """Give the name that the icon's entry has, following plain aliases; None when there is none."""
        for _ in range(8):
            if name in self.icons:
                return name
            alias = self.aliases.get(name)
            # An alias may also turn or mirror its parent; those are left out instead of being drawn wrongly.
            if alias is None or set(alias) & {"rotate", "hFlip", "vFlip"}:
                return None
            name = alias["parent"]
        return None

    def names(self) -> set[str]:
        """All names that `find` finds."""
        return {name for name in (*self.icons, *self.aliases) if self.find(name) is not None}

    def render(self, name: str, size: int) -> UInt8[np.ndarray, "size size 4"]:
        """Draw an icon as RGBA, fitted into a square."""
        import resvg_py  # only this function needs it, and only while a data set is being made

        icon = self.icons.get(self.find(name))
        what = f"icon {name!r} of the set {self.name!r}"
        if icon is None:
            raise InputError(f"there is no {what}.")
        body = icon["body"]
        if "<image" in body or "<!" in body or "<?" in body:
            raise InputError(f"{what} refers to something outside itself, which is not allowed: use the published set.")
        width, height = icon.get("width", self.width), icon.get("height", self.height)
        view = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{size}"'
            f' height="{size}" viewBox="{view}">{body}</svg>'
        )
        try:
            png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
        except ValueError as error:
            raise InputError(f"{what} cannot be drawn ({error}): get its set again.") from error
        with Image.open(io.BytesIO(bytes(png))) as image:
            return np.asarray(image.convert("RGBA"))


def find_tarballs(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Find one tarball of each set in the folder; the error says how to get those that are missing."""
    found: dict[str, Path] = {}
    missing = []
    for name in names:
        # The version starts with a digit: "noto" must not take "noto-v1".
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
            f"icon sets missing in {folder}: {', '.join(missing)}. Get them with:"
            f" mkdir -p {folder} && cd {folder} && npm pack {packages}"
        )
    return found


def read_icon_set(path: Path, name: str) -> IconSet:
    """Read icons.json out of a tarball; nothing is written to disk and nothing else in it is read."""
    try:
        data = json.loads(_read_member(path))
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a readable icon tarball ({error}): get it again with npm pack.") from error
    icons, aliases = data.get("icons"), data.get("aliases", {})
    if not isinstance(icons, dict) or not isinstance(aliases, dict) or data.get("prefix") != name:
        raise InputError(f"{path}: {MEMBER} is not the icon set {name!r}: get it with npm pack @iconify-json/{name}.")
    if not all(isinstance(icon, dict) and isinstance(icon.get("body"), str) for icon in icons.values()):
        raise InputError(f"{path}: an icon in {MEMBER} has no body: get it again with npm pack @iconify-json/{name}.")
    return IconSet(name, data.get("width", 16), data.get("height", 16), icons, aliases)


def _read_member(path: Path) -> bytes:
    # Read as a stream: members before the wanted one are skipped over and never kept.
    with tarfile.open(path, "r|gz") as archive:
        for number, member in enumerate(archive):
            if member.name == MEMBER and member.isreg():
                if member.size > MAX_BYTES:
                    raise InputError(f"{path}: {MEMBER} has {member.size} bytes, more than {MAX_BYTES}: get it again.")
                return archive.extractfile(member).read(MAX_BYTES)
            if number >= MAX_MEMBERS:
                break
    raise InputError(f"{path} has no {MEMBER}: it is not an @iconify-json package.")


def common_subjects(sets: Sequence[IconSet]) -> tuple[str, ...]:
    """Names that every set draws and that stand for a thing, in alphabetical order; one name only for each drawing."""
    names = functools.reduce(set.intersection, (icons.names() for icons in sets))
    names = {name for name in names if not _NO_SUBJECT.search(name)}
    for icons in sets:
        # Of several names for one drawing the one of its entry stays: were one of them held out, training would see it.
        single = {icons.find(name): name for name in sorted(names, key=lambda name: (name in icons.icons, name))}
        names = set(single.values())
    return tuple(sorted(names))
