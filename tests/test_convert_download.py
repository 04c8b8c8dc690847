# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Downloads, from a hub that is a folder: no test uses the network."""

import fnmatch

import huggingface_hub
import pytest
from huggingface_hub import errors as ERRORS

from convert import download
from convert.__main__ import main
from uso_jax.errors import InputError


class Hub:
    """Gives the files of a repository that match, as huggingface_hub's module does."""

    def __init__(self, folder, files=(), error=None):
        self.folder, self.files, self.error, self.calls = folder, files, error, []

    def snapshot_download(self, repo, *, revision=None, allow_patterns):
        self.calls.append((repo, revision, allow_patterns))
        if self.error is not None:
            raise self.error
        for name in self.files:
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                path = self.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"x")
        return str(self.folder)


def raised(kind) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, "reason")
    return error


@pytest.mark.parametrize("name", download.RELEASES)
def test_exactly_the_needed_files(name, tmp_path):
    release = download.RELEASES[name]
    hub = Hub(tmp_path, (*release.files, "flux1-other.safetensors", "transformer/x.safetensors", "README.md"))
    folder = download.fetch(release, "main", hub.snapshot_download)
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == sorted(release.files)
    assert hub.calls == [(release.repo, "main", list(release.files))]
    assert release.imported and set(release.imported) <= set(release.files)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"has no uso_flux_v1.0/projector.safetensors"):
        download.fetch(
            download.RELEASES["uso"], snapshot=Hub(tmp_path, ["uso_flux_v1.0/dit_lora.safetensors"]).snapshot_download
        )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ERRORS.GatedRepoError, "accept its licence at https://huggingface.co/bytedance-research/USO"),
        (ERRORS.RepositoryNotFoundError, "needs a login"),
        (ERRORS.RevisionNotFoundError, "at this revision"),
        (ERRORS.LocalEntryNotFoundError, "unset HF_HUB_OFFLINE"),
        (ERRORS.OfflineModeIsEnabled, "unset HF_HUB_OFFLINE"),
        (ERRORS.HfHubHTTPError, "run the same command to go on"),
        (OSError, "run the same command to go on"),
    ],
)
def test_what_may_go_wrong(kind, message, tmp_path):
    with pytest.raises(InputError) as caught:
        download.fetch(download.RELEASES["uso"], snapshot=Hub(tmp_path, error=raised(kind)).snapshot_download)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_command(tmp_path, monkeypatch, capsys):
    hub = Hub(tmp_path, download.RELEASES["uso"].files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    main(["download", "uso"])
    out = capsys.readouterr().out
    assert str(tmp_path) in out and "python -m convert import" in out and "dit_lora.safetensors" in out


def test_offline(tmp_path, monkeypatch, capsys):
    """The real module, told to stay off the network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        main(["download", "uso"])
    assert caught.value.code == 2 and "unset HF_HUB_OFFLINE" in capsys.readouterr().err


def test_unknown_name(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["download", "uso", "flux-pro"])
    assert caught.value.code == 2 and "'flux-pro' is not a release" in capsys.readouterr().err
