# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The one way in for images: formats, limits, orientation in header and pixels."""

import ast
import os
import pathlib

import pytest

from uso_jax.common.errors import BadExample
from uso_jax.images import opening

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("uso_jax", "convert", "scripts", "configs")


def test_only_one_module_opens_images():
    calls = []
    for path in (path for name in PACKAGES for path in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name.endswith("Image.open") or name in ("ImageFile.Parser", "plt.imread", "imread"):
                calls.append((path.relative_to(ROOT).as_posix(), {k.arg for k in node.keywords}))
    assert calls and all(call == ("uso_jax/images/opening.py", {"formats"}) for call in calls)


@pytest.mark.parametrize("look", [opening.open_image, opening.image_size])
def test_eps_starts_no_program(look, tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nexit 1\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(BadExample, match=r"x cannot be decoded \(unknown image format; PNG, JPEG.* are read\)"):
        look(eps, what="x")
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("look", [opening.open_image, opening.image_size])
def test_only_regular_files_are_read(look, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, pathlib.Path("/dev/zero")):
        with pytest.raises(BadExample, match="x is not a file"):
            look(path, what="x")
    with pytest.raises(BadExample, match="x does not exist"):
        look(tmp_path / "absent.png", what="x")
