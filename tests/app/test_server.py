# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The socket and the folders of the web app's server."""

import os
import socket

import pytest

from uso_jax.app import server
from uso_jax.app.examples import about, write_examples
from uso_jax.commands import app
from uso_jax.common.errors import InputError


def test_the_first_free_port_is_taken(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        number = busy.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {number}.*choose another"), server._listening("127.0.0.1", number):
            pass
        monkeypatch.setattr(server, "FIRST_PORT", number)
        with server._listening("127.0.0.1", None) as listener:
            assert number < listener.getsockname()[1] < number + server.PORTS


@pytest.mark.parametrize(
    "host, port", [("no.such.host.invalid", 0), ("127.0.0.1", 70_000), ("203.0.113.1", 0), ("\ud800", 0)]
)
def test_addresses_that_cannot_be_used(host, port):
    with pytest.raises(InputError, match="choose another --host or --port"), server._listening(host, port):
        pass


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
    assert "32 x 32" in about("mini") and "64 x 64" in about("small") and about("/weights/mini") == ""
    rows = write_examples(tmp_path / "mini", "mini")
    assert all(row[2] for row in rows)  # each has a content image: from text or a style alone mini draws smears
    assert {row[0] for row in write_examples(tmp_path / "uso", "uso")} >= {"text", "style", "subject", "several styles"}
