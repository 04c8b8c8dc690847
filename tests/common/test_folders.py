# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Folders: files of desktops left out, links inside only, no FIFO, names of any bytes; paths in lists."""

import os
import pathlib
import socket

import pytest

from uso_jax.common import folders
from uso_jax.common.errors import InputError

CLUTTER = (
    ".DS_Store", "._x.png", "desktop.ini", "Desktop.INI", "Thumbs.db", "ehthumbs.db", "__MACOSX/a/x.png", "x.png~",
    ".x.png.swp", "x.swp", "#x.txt#", ".#x.txt", "~$x.docx", "a/.directory", "@eaDir/x.png", ".Trash-1000/x.png",
    ".cache/huggingface/x.png", "$RECYCLE.BIN/x.png", "Icon\r", "x.png.bak", "x.zip.part", ".ipynb_checkpoints/x.png",
)  # fmt: skip
DATA = ("x.png", "a/x.png", "a.b/x.tar.png", "#1.png", "$1.png", "x~y.png", "desktop.png", "./x.png", "../x.png", "…x")


def names(folder, **options):
    return [name for name, _ in folders.files(folder, **options)]


def write(path: pathlib.Path, data=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", CLUTTER)
def test_clutter(name):
    assert folders.is_clutter(name) and folders.is_clutter(f"sub/{name}") and folders.is_clutter(f"sub\\{name}")


@pytest.mark.parametrize("name", DATA)
def test_data(name):
    assert not folders.is_clutter(name)


def test_files_in_order_of_name_without_clutter(tmp_path):
    for name in (*CLUTTER, "b/2.png", "b/1.png", "a.png", "b.txt"):
        write(tmp_path / name)
    assert names(tmp_path) == ["a.png", "b.txt", "b/1.png", "b/2.png"]
    assert names(tmp_path, deep=False) == ["a.png", "b.txt"]
    assert [path for _, path in folders.files(tmp_path)] == [str(tmp_path / name) for name in names(tmp_path)]


def test_links_inside_are_followed_once(tmp_path):
    write(tmp_path / "root" / "a" / "x.png")
    (tmp_path / "root" / "y.png").symlink_to("a/x.png")
    (tmp_path / "root" / "z").symlink_to("a")
    (tmp_path / "root" / "a" / "up").symlink_to("..")
    (tmp_path / "link").symlink_to("root")
    assert names(tmp_path / "root") == names(tmp_path / "link") == ["y.png", "a/x.png"]
    # Each of thirty folders links twice to the next: a walk that follows all would take a billion steps.
    for number in range(30):
        (tmp_path / "many" / str(number)).mkdir(parents=True)
        for name in ("p", "q"):
            (tmp_path / "many" / str(number) / name).symlink_to(f"../{number + 1}")
    write(tmp_path / "many" / "30" / "x.png")
    assert len(names(tmp_path / "many")) == 1


@pytest.mark.parametrize("where", ["file", "folder", "through a folder", "the whole part"])
def test_links_that_lead_out_are_refused(tmp_path, where):
    write(tmp_path / "secret" / "x.png")
    root = tmp_path / "root"
    write(root / "target" / "a.png")
    if where == "file":
        (root / "target" / "x.png").symlink_to(tmp_path / "secret" / "x.png")
    elif where == "folder":
        (root / "target" / "b").symlink_to(tmp_path / "secret")
    elif where == "through a folder":
        (root / "target" / "b").symlink_to("../../secret")
    else:
        (root / "style").symlink_to(tmp_path / "secret")
    part = root / ("style" if where == "the whole part" else "target")
    with pytest.raises(InputError, match=r"is a link to .*secret.*, outside .*root; copy"):
        names(part, inside=root)


def test_a_prefix_of_the_name_is_not_inside(tmp_path):
    write(tmp_path / "root-secret" / "x.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "x.png").symlink_to(tmp_path / "root-secret" / "x.png")
    with pytest.raises(InputError, match="outside"):
        names(tmp_path / "root")


def test_the_links_of_the_hubs_cache(tmp_path):
    write(tmp_path / "datasets--a" / "blobs" / "0123", b"data")
    root = tmp_path / "datasets--a" / "snapshots" / "4567"
    root.mkdir(parents=True)
    (root / "x.png").symlink_to("../../blobs/0123")
    assert names(root) == ["x.png"]
    (root / "y.png").symlink_to(write(tmp_path / "secret"))
    with pytest.raises(InputError, match="outside"):
        names(root)


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "broken link", "loop"])
def test_what_is_no_regular_file_is_refused(tmp_path, monkeypatch, kind):
    path = tmp_path / "x.png"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)  # the name of a socket is at most 108 bytes long
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("x.png")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "broken link":
        path.symlink_to("gone.png")
    else:
        path.symlink_to("x.png")
    with pytest.raises(InputError, match=r"x\.png is (not a regular file|a link)"):
        names(tmp_path)


def test_names_of_any_bytes(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    write(tmp_path / name, b"data")
    ((found, path),) = folders.files(tmp_path)
    assert found == name and pathlib.Path(path).read_bytes() == b"data"


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="gone cannot be read"):
        names(tmp_path / "gone")


def test_paths_in_lists_may_be_of_windows(tmp_path):
    write(tmp_path / "a" / "b.png")
    assert folders.located("a\\b.png", tmp_path, "x.json") == os.path.join(tmp_path, "a/b.png")
    assert folders.located("a/b.png", tmp_path, "x.json") == os.path.join(tmp_path, "a/b.png")
    write(tmp_path / "c\\d.png")
    assert folders.located("c\\d.png", tmp_path, "x.json") == os.path.join(tmp_path, "c\\d.png")
    for name in ("C:\\data\\b.png", "c:/data/b.png"):
        with pytest.raises(InputError, match=r"x\.json: .*drive letter"):
            folders.located(name, tmp_path, "x.json")
