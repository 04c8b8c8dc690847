# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From a training's checkpoint to files for other programs in one command."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from convert.__main__ import main
from uso_jax import weights
from uso_jax.models.components import section_fields
from uso_jax.models.uso import USO
from uso_jax.training.checkpoints import Checkpoints
from uso_jax.training.fit import fit
from uso_jax.weights.adapters.names import ADAPTED


@functools.cache
def config():
    return tiny.config("joint")


@functools.cache
def system() -> USO:
    return USO(config().system)


def drawn(seed: int, keep=lambda path: True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {path: struct.shape for path, struct in system().shapes.items() if path.startswith("transformer/")}
    values = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    return {path: value for path, value in values.items() if keep(path)}


def is_adapter(path: str) -> bool:
    return "/processor/" in path or "feature_embedder" in path


def save(workdir, step: int, params: dict, ema: dict, changes: dict | None = None):
    checkpoints = Checkpoints(workdir / "checkpoints", keep=9)
    record = tiny.config("joint", changes=changes).fingerprint() if changes else config().fingerprint()
    arrays = {"params": jax.tree.map(jax.numpy.asarray, params), "opt_state": {"count": jax.numpy.zeros(3)}, "ema": ema}
    checkpoints.save(step, arrays, {"config": record, "step": step})
    checkpoints.close()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    average = {path: jax.numpy.asarray(value) for path, value in drawn(2, lambda p: "/processor/" in p).items()}
    save(path, 4, drawn(0, is_adapter), {})
    save(path, 12, drawn(1, is_adapter), average)
    return path


def export(*argv) -> None:
    main(["export", *map(str, argv)])


def rows(params: dict, path: str, layer: int) -> np.ndarray:
    return params[f"transformer/{path}/kernel"][layer].T


@pytest.mark.parametrize(
    ("which", "options", "seed"), [("", [], 2), ("", ["--raw"], 1), ("", ["--ema"], 2), ("checkpoints/4", [], 0)]
)
def test_adapters_and_projector(which, options, seed, workdir, tmp_path):
    export(workdir / which, "--format", "uso", "--to", tmp_path / "out", *options)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dit_lora.safetensors",
        "projector.safetensors",
    ]
    found = load_file(tmp_path / "out" / "dit_lora.safetensors")
    params = drawn(seed, is_adapter)
    np.testing.assert_array_equal(
        found["double_blocks.0.processor.qkv_lora2.up.weight"], rows(params, "double_blocks/processor/qkv_lora2/up", 0)
    )
    projector = load_file(tmp_path / "out" / "projector.safetensors")
    # The stage that averaged did not train the projector, so its last numbers count.
    last = drawn(0 if seed == 0 else 1, is_adapter)
    np.testing.assert_array_equal(
        projector["feature_embedder.low_projection.weight"],
        last["transformer/feature_embedder/low_projection/kernel"].T,
    )
    assert len(projector) == 18


@pytest.mark.parametrize(
    ("options", "name"), [(["--format", "diffusers"], "pytorch_lora_weights"), (["--format", "peft"], "adapter_model")]
)
def test_other_layouts(options, name, workdir, tmp_path):
    export(workdir, *options, "--dtype", "bf16", "--to", tmp_path / "out")
    assert {str(x.dtype) for x in load_file(tmp_path / "out" / f"{name}.safetensors").values()} == {"bfloat16"}
    if name == "adapter_model":
        assert (
            json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"]
            == config().system.transformer.lora_rank
        )


def test_exports_can_be_imported(workdir, tmp_path):
    export(workdir, "--format", "uso", "--to", tmp_path / "out")
    (tmp_path / "c.json").write_text(json.dumps({"projector": {"layers": [-2, -3, -4]}}))
    files = map(str, (tmp_path / "out").iterdir())
    main(["import", *files, "--to", str(tmp_path / "w"), "--config", str(tmp_path / "c.json")])
    want = config().system.transformer
    found = weights.manifest(tmp_path / "w", "lora")["config"]
    assert found["lora"]["rank"] == want.lora_rank and found["flux"]["depth"] == want.depth
    assert weights.manifest(tmp_path / "w", "projector")["config"]["projector"]["layers"] == want.projector.layers


def test_merged_with_a_base(workdir, tmp_path):
    base = drawn(7, lambda path: not is_adapter(path))
    flux = {name: getattr(config().system.transformer, name) for name in section_fields()["flux"]}
    plain = {path.removeprefix("transformer/"): value for path, value in base.items()}
    weights.save(tmp_path / "w", "transformer", plain, {"config": {"flux": flux}, "family": "flux"})
    export(workdir, "--base", tmp_path / "w", "--format", "bfl", "--to", tmp_path / "m.safetensors")
    merged, adapters = load_file(tmp_path / "m.safetensors"), drawn(2, is_adapter)
    for adapter, key in (
        ("double_blocks/processor/proj_lora2", "double_blocks.0.txt_attn.proj.weight"),
        ("single_blocks/processor/qkv_lora", "single_blocks.0.linear1.weight"),
    ):
        delta = rows(adapters, f"{adapter}/up", 0) @ rows(adapters, f"{adapter}/down", 0)
        want = rows(base, ADAPTED[adapter], 0) + delta
        np.testing.assert_allclose(merged[key][: len(want)], want, rtol=1e-4, atol=1e-4)

    # A workdir is an adapter too, and brings the projector that it trained.
    main(["merge", str(tmp_path / "w"), str(workdir), "--to", str(tmp_path / "into")])
    assert {"transformer", "projector"} == set(weights.components(tmp_path / "into"))
    export(tmp_path / "into", "--component", "transformer", "--format", "bfl", "--to", tmp_path / "again.safetensors")
    again = load_file(tmp_path / "again.safetensors")
    for key, value in merged.items():
        np.testing.assert_allclose(again[key], value, rtol=1e-5, atol=1e-5)


def test_a_training_of_everything_needs_no_base(tmp_path):
    save(tmp_path / "run", 3, drawn(5), {})
    export(tmp_path / "run", "--format", "bfl", "--to", tmp_path / "m.safetensors")
    export(tmp_path / "run", "--format", "diffusers", "--component", "merged", "--to", tmp_path / "d")
    assert "double_blocks.0.img_attn.qkv.weight" in load_file(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "bfl"], "has no transformer"),
        (["--component", "merged"], "has no transformer"),
        (["--component", "autoencoder"], "has no autoencoder"),
        (["--format", "peft", "--component", "projector"], "projector has no layout 'peft'"),
        ([], "nothing to export"),
    ],
)
def test_what_a_training_does_not_have(options, message, workdir, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        export(workdir, *options, "--to", tmp_path / "out")
    assert caught.value.code == 2 and message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_no_average(tmp_path, capsys):
    save(tmp_path / "run", 1, drawn(0, is_adapter), {})
    with pytest.raises(SystemExit):
        export(tmp_path / "run", "--format", "uso", "--ema", "--to", tmp_path / "out")
    assert "has no average" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.style_encoder": "autoencoder"}, "style images with the autoencoder"),
        ({"model.transformer.projector.kind": "mlp"}, "the projector is of kind 'mlp'"),
    ],
)
def test_an_ablation_is_not_exported(changes, message, tmp_path, capsys):
    save(tmp_path / "run", 1, drawn(0, is_adapter), {}, changes)
    with pytest.raises(SystemExit) as caught:
        export(tmp_path / "run", "--format", "uso", "--to", tmp_path / "out")
    assert caught.value.code == 2 and message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_two_files_into_one_name(workdir, tmp_path, capsys):
    with pytest.raises(SystemExit):
        export(workdir, "--format", "uso", "--to", tmp_path / "x.safetensors")
    assert "give --to a folder" in capsys.readouterr().err


def test_damaged_checkpoint(workdir, tmp_path, capsys):
    shutil.copytree(workdir, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints" / "12" / "arrays").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SystemExit) as caught:
        export(tmp_path / "run", "--format", "uso", "--to", tmp_path / "out")
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert "cannot be read as a training's checkpoint" in err and err.count("\n") == 1


@pytest.fixture(scope="module")
def cheap(compiled):
    yield from tiny.compile_cheaply(compiled)


@pytest.mark.slow
def test_from_the_training_loop_itself(tmp_path, cheap):
    """A run's own checkpoint, made by `fit`, and not by this file's imitation of it."""
    fit(tiny.config("joint", steps=1, batch_size=8), tmp_path / "run")
    export(tmp_path / "run", "--format", "uso", "--to", tmp_path / "out")
    assert len(load_file(tmp_path / "out" / "dit_lora.safetensors")) == 8 + 4
