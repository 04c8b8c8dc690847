# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Files at URLs and on this machine: whatever a store's library raises, and what is no file, is one sentence."""

import os

import fsspec
import pytest

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.data.storage import urls
from uso_jax.data.storage.places import Place


class StoreError(Exception):
    """As aiohttp's ClientError and gcsfs's HttpError, this is no OSError."""


class BrokenStore(fsspec.AbstractFileSystem):
    protocol = "broken"

    def _fail(self, *args, **kwargs):
        raise StoreError("status 500")

    info = ls = cat_file = isdir = exists = _open = _fail


@pytest.fixture(autouse=True)
def _broken():
    fsspec.register_implementation("broken", BrokenStore, clobber=True)


@pytest.mark.parametrize(
    "call", [urls.open_binary, urls.read_text, urls.is_folder, urls.exists, lambda p: Place(p).read()]
)
def test_errors_of_stores(call):
    with pytest.raises(InputError, match=r"broken://a/b.*status 500"):
        call("broken://a/b")


@pytest.mark.parametrize(
    "call", [urls.open_binary, urls.read_text, lambda p: Place(p).read(), lambda p: Place(p).size()]
)
def test_a_fifo_is_no_file(call, tmp_path):
    os.mkfifo(tmp_path / "list.json")
    with pytest.raises(InputError, match=r"list\.json.*not a file"):
        call(str(tmp_path / "list.json"))


def test_remote_text_has_a_limit(monkeypatch):
    monkeypatch.setattr(untrusted, "LIST_LIMIT", 1000)
    with fsspec.open("memory://limits/list.json", "wb") as file:
        file.write(bytes(2000))
    with pytest.raises(InputError, match=r"larger than 1000 bytes"):
        urls.read_text("memory://limits/list.json")
    with fsspec.open("memory://limits/list.json", "wb") as file:
        file.write(b"\xef\xbb\xbf[]")
    assert urls.read_text("memory://limits/list.json") == "[]"
