# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Notes in an adapter's file, its model card, and its upload."""

import huggingface_hub
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from safetensors import safe_open

from convert.__main__ import main
from uso_jax.models.uso import USO
from uso_jax.training.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A training's checkpoint with adapters, and two sample grids."""
    path, config = tmp_path_factory.mktemp("run") / "ink", tiny.config("joint", steps=7)
    shapes = {path: struct.shape for path, struct in USO(config.system).shapes.items() if "/processor/" in path}
    checkpoints = Checkpoints(path / "checkpoints", keep=1)
    stages = [{"name": "joint", "heldout_loss_before": 0.5, "heldout_loss_after": 0.25}]
    arrays = {"params": {path: jnp.zeros(shape) for path, shape in shapes.items()}, "ema": {}}
    checkpoints.save(7, arrays, {"config": config.fingerprint(), "step": 7, "stages": stages})
    checkpoints.close()
    (path / "samples").mkdir()
    for number, level in ((3, 0), (7, 200)):
        Image.new("RGB", (8, 8), (level,) * 3).save(path / "samples" / f"{number:06d}_joint.png")
    return path


@pytest.fixture
def exported(workdir, tmp_path):
    main(["export", str(workdir), "--format", "comfy", "--to", str(tmp_path / "out")])
    return tmp_path / "out"


def fails(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments)])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_notes_in_the_file(exported):
    (file,) = exported.glob("*.safetensors")
    with safe_open(file, "numpy") as opened:
        notes = opened.metadata()
    wanted = {
        "format": "pt",
        "modelspec.architecture": "flux-1-dev/lora",
        "modelspec.title": "ink",
        "modelspec.resolution": "16x16",
        "ss_base_model_version": "flux1",
        "ss_network_dim": str(tiny.config("joint").system.transformer.lora_rank),
        "ss_steps": "7",
        "ss_total_batch_size": "8",
        "ss_optimizer": "adamw",
    }
    assert wanted.items() <= notes.items()


def test_card(workdir, exported, capsys):
    main(["card", str(workdir), "--to", str(exported), "--prompt", "in zxq style"])
    text = (exported / "README.md").read_text()
    assert "| joint | 7 | 8 |" in text and "| 0.5000 | 0.2500 |" in text and "lora.safetensors" in text
    assert text.startswith("---\nbase_model: ") and 'instance_prompt: "in zxq style"' in text
    with Image.open(exported / "samples.png") as image:
        assert np.asarray(image).min() == 200  # of the last samples
    assert "exists already" in fails(capsys, "card", workdir, "--to", exported)
    assert "holds no safetensors" in fails(capsys, "card", workdir, "--to", workdir)
    assert "is not a training" in fails(capsys, "card", exported, "--to", exported)


def test_push(workdir, exported, capsys, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, repository, **options):
            calls.append((repository, options))

        def upload_folder(self, **options):
            calls.append(options)
            if error:
                raise error

    error = None
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert "has no README.md" in fails(capsys, "push", exported, "me/ink")
    main(["card", str(workdir), "--to", str(exported)])
    assert "must be OWNER/NAME" in fails(capsys, "push", exported, "ink")
    main(["push", str(exported), "me/ink"])
    assert calls[0] == ("me/ink", {"private": True, "exist_ok": True}) and calls[1]["repo_id"] == "me/ink"
    error = OSError("no connection")
    assert "no connection" in fails(capsys, "push", exported, "me/ink")
