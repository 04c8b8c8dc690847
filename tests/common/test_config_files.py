# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which file --config means, from any directory."""

import pathlib

import pytest

import uso_jax
from uso_jax.common import config_files


@pytest.mark.parametrize("name", ["configs/uso.py", "uso.py", "uso"])
def test_packaged_files_have_short_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = pathlib.Path(config_files.find(name))
    assert found == config_files.folder() / "uso.py" and "get_config" in found.read_text()


def test_a_file_of_the_user_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "uso.py").touch()
    assert config_files.find("configs/uso.py") == "configs/uso.py"
    assert config_files.find("uso") == str(config_files.folder() / "uso.py")


@pytest.mark.parametrize("name", ["absent.py", "absent", "other/uso.py", "../configs/uso.py", ""])
def test_other_names_stay(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_files.find(name) == name


@pytest.mark.parametrize("name", ["uso:mini32", "uso.py:mini32", "configs/uso.py:mini32"])
def test_packaged_configurations_load_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert uso_jax.load_config(name).variant == "mini32"


def test_the_default_variant_is_mini(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert uso_jax.load_config("uso") == uso_jax.load_config("configs/uso.py:mini")
