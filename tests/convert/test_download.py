# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Downloads, from a hub that is a folder: no test uses the network."""

import dataclasses
import fnmatch
import io
import itertools
import json

import huggingface_hub
import numpy as np
import pytest
import sentencepiece
from huggingface_hub import errors as ERRORS
from safetensors.numpy import save_file

from convert import download, releases, tokenizers
from convert.__main__ import main
from convert.tables.t5 import ENCODER
from uso_jax import params
from uso_jax.common.errors import InputError
from uso_jax.models import text
from uso_jax.models.t5 import T5Config, T5Encoder
from uso_jax.weights import manifest
from uso_jax.weights.pretrained import Defaults
from uso_jax.weights.tables.table import expand


class Hub:
    """Returns the matching files of a repository, like huggingface_hub's module."""

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


@pytest.mark.parametrize("name", releases.RELEASES)
def test_exactly_the_needed_files(name, tmp_path):
    release = releases.RELEASES[name]
    hub = Hub(tmp_path, (*release.files, "flux1-other.safetensors", "transformer/x.safetensors", "README.md"))
    folder = download.fetch(release, "main", hub.snapshot_download)
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == sorted(release.files)
    assert hub.calls == [(release.repo, "main", list(release.files))]
    assert release.imported and set(release.imported) <= set(release.files)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"has no uso_flux_v1.0/projector.safetensors"):
        download.fetch(
            releases.RELEASES["uso"], snapshot=Hub(tmp_path, ["uso_flux_v1.0/dit_lora.safetensors"]).snapshot_download
        )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ERRORS.GatedRepoError, "accept its licence at https://huggingface.co/bytedance-research/USO"),
        (ERRORS.RepositoryNotFoundError, "needs a login"),
        (ERRORS.RevisionNotFoundError, "at this revision"),
        (ERRORS.LocalEntryNotFoundError, "unset HF_HUB_OFFLINE"),
        (ERRORS.OfflineModeIsEnabled, "unset HF_HUB_OFFLINE"),
        (ERRORS.HfHubHTTPError, "run the same command to resume"),
        (OSError, "run the same command to resume"),
    ],
)
def test_what_may_go_wrong(kind, message, tmp_path):
    with pytest.raises(InputError) as caught:
        download.fetch(releases.RELEASES["uso"], snapshot=Hub(tmp_path, error=raised(kind)).snapshot_download)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_command(tmp_path, monkeypatch, capsys):
    hub = Hub(tmp_path, releases.RELEASES["uso"].files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    main(["download", "uso"])
    out = capsys.readouterr().out
    assert str(tmp_path) in out and "python -m convert import" in out and "dit_lora.safetensors" in out


def test_shards_of_klein(tmp_path, monkeypatch, capsys):
    """The number of shards is the repository's; the way to sample is printed."""
    shards = [f"text_encoder/model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    others = ["transformer/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
    files = [*shards, *others, "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"]
    hub = Hub(tmp_path, [*files, "flux-2-klein-4b.safetensors", "text_encoder/config.json"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    main(["download", "klein-4b"])
    out = capsys.readouterr().out
    assert all(str(tmp_path / name) in out for name in [*shards, *others]) and "flux-2-klein" not in out
    assert '"num_steps": 4' in out
    (tmp_path / shards[0]).unlink(), (tmp_path / shards[1]).unlink()
    with pytest.raises(InputError, match=r"has no text_encoder/model\*.safetensors"):
        download.fetch(releases.RELEASES["klein-4b"], snapshot=Hub(tmp_path, others).snapshot_download)


def test_offline(tmp_path, monkeypatch, capsys):
    """The real module, told to stay off the network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        main(["download", "uso"])
    assert caught.value.code == 2 and "unset HF_HUB_OFFLINE" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- tokenizers


def pieces() -> bytes:
    """Train a SentencePiece model with T5's special tokens."""
    made = io.BytesIO()
    sentences = map(" ".join, itertools.permutations(["a", "red", "fox", "runs", "in"], 4))
    special = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_writer=made, vocab_size=30, model_type="unigram", **special
    )
    return made.getvalue()


def test_t5_comes_with_its_tokenizer(tmp_path, capsys, monkeypatch):
    """As the release has it: a SentencePiece model beside the weights."""
    release, weights = tmp_path / "release", tmp_path / "weights"
    release.mkdir()
    shapes = params.shapes(lambda rngs: T5Encoder(T5Config.tiny(), rngs=rngs))
    tensors = {key: np.zeros(entry.shape, np.float32) for key, entry in expand(ENCODER, shapes).items()}
    save_file(tensors, release / "model.safetensors")
    (release / "spiece.model").write_bytes(pieces())
    (release / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    (release / "config.json").write_text(json.dumps({"model_type": "t5"}))
    main(["import", str(release / "model.safetensors"), "--to", str(weights)])
    assert str(weights / "tokenizer_t5") in capsys.readouterr().out
    found = sorted(path.name for path in (weights / "tokenizer_t5").iterdir())
    assert found == ["config.json", "spiece.model", "tokenizer_config.json"]
    assert sorted(manifest(weights, "t5")["tokenizer"]) == found

    weights = weights.rename(tmp_path / "moved")
    name = Defaults.read(weights).t5_tokenizer
    assert name == str(weights / "tokenizer_t5")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(release / "spiece.model"))
    for prompt in ("a red fox runs", "the  house in red!", ""):
        ids = [*theirs.encode(prompt), 1]
        assert text.token_ids(name, prompt, 20).tolist() == ids + [0] * (20 - len(ids))
        assert text.token_ids(name, prompt, 3).tolist() == ([*ids[:-1][:2], 1] + [0] * 3)[:3]


def test_a_tokenizer_in_the_next_folder(tmp_path):
    for name in ("text_encoder/model.safetensors", "tokenizer/vocab.json", "tokenizer/a.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "weights" / "tokenizer_clip").mkdir(parents=True)
    (tmp_path / "weights" / "tokenizer_clip" / "old.json").touch()
    made = tokenizers.copy_tokenizer("clip", tmp_path / "text_encoder" / "model.safetensors", tmp_path / "weights")
    assert [path.name for path in made.iterdir()] == ["vocab.json"]
    assert [path.name for path in made.parent.iterdir()] == ["tokenizer_clip"]
    assert tokenizers.copy_tokenizer("t5", tmp_path / "weights" / "model.safetensors", tmp_path / "weights") is None


def test_unknown_name(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["download", "uso", "flux-pro"])
    assert caught.value.code == 2 and "'flux-pro' is not a release" in capsys.readouterr().err


def test_distilled_releases_say_how_they_are_sampled(tmp_path):
    file = tmp_path / "pipeline.json"
    for name, release in releases.RELEASES.items():
        file.write_text(json.dumps(dict(release.defaults)))
        found = Defaults.read(tmp_path)
        assert release.defaults.items() <= dataclasses.asdict(found).items()
        if name in ("flux-schnell", "klein-4b", "klein-9b"):
            assert found.num_steps == 4 and (name == "flux-schnell" or found.guidance == 1.0)
    assert releases.RELEASES["flux-schnell"].defaults["shift"] == "none"
