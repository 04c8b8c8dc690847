# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Recipes: what is fetched and imported, what is there already, and everything that is missing in one error."""

import shutil

import pytest
import tiny

from convert import recipes
from convert.__main__ import main
from convert.recipes import RECIPES
from convert.releases import RELEASES
from uso_jax import weights
from uso_jax.common.errors import InputError
from uso_jax.models.components import folders


def write(folder, release):
    """Write files of a release."""
    for name in release.files:
        path = folder / name.replace("*", "-00001")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def test_recipes_name_known_parts():
    assert {part for parts in RECIPES.values() for part in parts} <= RELEASES.keys()
    components = {*folders(lambda row: True), "lora", "projector"}
    assert all(set(release.components) <= components for release in RELEASES.values())


@pytest.fixture
def large_disk(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**50, 0, 2**50))


def test_everything_is_fetched_then_imported(tmp_path, capsys, large_disk):
    order = []
    (tmp_path / "w").mkdir()

    def fetch(release):
        order.append(release.repo)
        return write(tmp_path / release.repo, release)

    recipes.install(["klein"], tmp_path / "w", fetch, order.append, quantize="int8")
    klein, siglip = (RELEASES[name] for name in RECIPES["klein"])
    assert order[:2] == [klein.repo, siglip.repo]
    imported = order[2:]
    assert [(args.quantize, args.to) for args in imported] == [
        ("int8", str(tmp_path / "w")),
        (None, str(tmp_path / "w")),
    ]
    assert len(imported[0].files) == 3 and all(str(tmp_path) in file for file in imported[0].files)
    said = capsys.readouterr().out
    assert "Apache-2.0" in said and "18.2 GiB to download" in said
    assert '"guidance"' in (tmp_path / "w" / "pipeline.json").read_text()


def test_one_error_names_all_that_is_missing(tmp_path, large_disk):
    def fetch(release):
        if release.repo.endswith(("FLUX.1-dev", "USO")):
            raise InputError(f"{release.repo} is gated")
        return write(tmp_path / release.repo, release)

    with pytest.raises(InputError, match=r"2 of 6 parts .*flux-dev: .* is gated; uso: .* is gated"):
        recipes.install(["flux_dev"], tmp_path / "w", fetch, pytest.fail)


def test_too_little_space_is_said_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**40, 2**33))
    with pytest.raises(InputError, match=r"has 8\.0 GiB free, and \d\d\.\d are needed"):
        recipes.install(["flux_dev"], tmp_path / "w", pytest.fail, pytest.fail)


def test_files_that_are_there_are_imported_and_components_kept(tmp_path, capsys):
    """With mini32's adapters and projector under the names of the released ones."""
    main(["export", str(tiny.MINI32), "--format", "uso", "--to", str(tmp_path / "files")])
    arguments = ["download", "uso", "--to", str(tmp_path / "w"), "--files", str(tmp_path / "files")]
    main(arguments)
    assert "local files" in capsys.readouterr().out
    assert sorted(weights.components(tmp_path / "w")) == ["lora", "projector"]
    main(arguments)
    assert f"lora, projector are in {tmp_path / 'w'}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main([*arguments[:-1], str(tmp_path / "none")])
    assert caught.value.code == 2 and "is not a folder" in capsys.readouterr().err
