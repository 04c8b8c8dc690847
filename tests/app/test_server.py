# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The folders of the web app's server, and what it says of weights."""

import os

import pytest

from uso_jax.app import server
from uso_jax.app.examples import about, write_examples
from uso_jax.commands import app


def test_folders_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "new"))
    with server._folders() as (uploads, images):
        assert uploads.is_dir() and images.is_dir() and uploads.is_relative_to(tmp_path / "new")
        assert os.environ["GRADIO_TEMP_DIR"] == str(uploads)
        (uploads / "a.png").write_text("a")
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path / "new") and not any((tmp_path / "new").iterdir())


def test_a_quota_of_nothing_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        app.main(["--upload_quota", "0"])
    assert ended.value.code == 2 and "--upload_quota 0 must be at least 1 MB" in capsys.readouterr().err


def test_built_in_weights_say_what_they_can_do_and_have_examples_of_that(tmp_path):
    assert "64 x 64" in about("mini") and about("/weights/mini") == ""
    rows = write_examples(tmp_path / "mini", "mini")
    assert all(row[2] for row in rows)  # each has a content image: from text or a style alone mini draws smears
    assert {row[0] for row in write_examples(tmp_path / "uso", "uso")} >= {"text", "style", "subject", "several styles"}
