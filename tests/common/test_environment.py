# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Programs in poor surroundings: no home, ASCII only, places that cannot be written."""

import os
import pathlib
import subprocess
import sys

import pytest

from uso_jax.common import atomic_files, user_folders
from uso_jax.common.errors import InputError, exit_cleanly

ROOT = pathlib.Path(__file__).parents[2]


def test_folders_of_a_user_without_a_home(monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "home", homeless)
    assert user_folders.cache().parent.parent.name == user_folders.data().parents[2].name == f"uso_jax-{os.getuid()}"
    monkeypatch.setenv("XDG_CACHE_HOME", "/a")
    assert user_folders.cache() == pathlib.Path("/a/uso_jax")


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp1252"}])
def test_streams_that_lack_characters(environment):
    code = (
        "from uso_jax.common.errors import InputError, exit_cleanly\n"
        "@exit_cleanly\n"
        "def main():\n    print('caf\\u00e9 \\u4e16')\n    raise InputError('no \\u4e16')\n"
        "main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment | {"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert run.returncode == 2 and b"Traceback" not in run.stderr
    assert run.stdout.strip().endswith(b"\\u4e16") and run.stderr.strip() == b"error: no \\u4e16"


def test_a_probe_leaves_nothing(tmp_path):
    atomic_files.probe(tmp_path / "a" / "b" / "c.png")
    (tmp_path / "there.png").write_text("kept")
    atomic_files.probe(tmp_path / "there.png")
    assert [path.name for path in tmp_path.iterdir()] == ["there.png"]
    assert (tmp_path / "there.png").read_text() == "kept"


@pytest.mark.parametrize(
    "place", ["{}/{long}", "{}/{long}/x.png", "{}/file/x.png", "{}/file/a/x.png", "{}", "/proc/x/y"]
)
def test_a_probe_finds_what_cannot_be_written(tmp_path, place):
    (tmp_path / "file").write_text("kept")
    path = pathlib.Path(place.format(tmp_path, long="x" * 300))

    @exit_cleanly
    def main():
        with atomic_files.explained(path, "choose another"):
            atomic_files.probe(path)

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
    with pytest.raises(InputError, match="choose another"), atomic_files.explained(path, "choose another"):
        atomic_files.probe(path)
