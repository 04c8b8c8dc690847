# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which file --config means, from any directory."""

import pathlib

import pytest

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


@pytest.mark.parametrize("form", ["--config={}", "-config={}", "--config {}"])
def test_a_command_line_names_an_existing_file(form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = config_files.folder() / "mini_foundation.py"
    rest = ["--config.seed=3", "--workdir=x"]
    given = ["program", *form.format("mini_foundation:base").split(), *rest]
    assert config_files.expand(given) == ["program", *form.format(f"{packaged}:base").split(), *rest]
    assert config_files.expand(["program", *rest]) == ["program", f"--config={config_files.folder() / 'uso.py'}", *rest]


def test_the_default_of_a_checkout_stays(monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parents[2])
    assert config_files.expand(["program", "--config.seed=3"]) == ["program", "--config.seed=3"]
