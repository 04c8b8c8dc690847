# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tarballs of icon sets made here: a few drawn bodies in seven sets, each in one colour."""

import io
import json
import tarfile

from uso_jax.data.emoji.artwork import TEAMS, is_heldout
from uso_jax.data.emoji.iconify import MEMBER

SHAPES = {
    "disc": '<circle cx="16" cy="16" r="14" fill="{0}"/>',
    "block": '<path fill="{0}" d="M4 4h24v24H4z"/>',
    "roof": '<path fill="{0}" d="M16 2l14 28H2z"/>',
    "bar-of-gold": '<path fill="{0}" d="M2 12h28v8H2z"/>',
    "post": '<path fill="{0}" d="M12 2h8v28h-8z"/>',
    "left-arrow": '<path fill="{0}" d="M2 16l14-14v28z"/>',
}
GEM = '<path fill="{0}" d="M2 16l14-14 14 14-14 14z"/>'
COLOURS = ("#c02020", "#20a030", "#2040c0", "#c0a020", "#a020a0", "#20a0a0", "#404040")
HELD = next(name for name in (f"gem-{n}" for n in range(100)) if is_heldout(name))


def icons(team):
    colour = COLOURS[TEAMS.index(team)]
    drawn = {name: {"body": body.format(colour)} for name, body in SHAPES.items()}
    drawn[HELD] = {"body": GEM.format(colour), "width": 48, "left": -8}
    return {"prefix": team, "width": 32, "height": 32, "icons": drawn, "aliases": {"ball": {"parent": "disc"}}}


def write_tarball(folder, team, data=None, member=MEMBER):
    payload = json.dumps(icons(team) if data is None else data).encode()
    with tarfile.open(folder / f"iconify-json-{team}-1.2.3.tgz", "w:gz") as archive:
        for name, content in (("package/README.md", b"x" * 2000), (member, payload)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return folder / f"iconify-json-{team}-1.2.3.tgz"


def write_tarballs(folder):
    for team in TEAMS:
        write_tarball(folder, team)
    return folder
