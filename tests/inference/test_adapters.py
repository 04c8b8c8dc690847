# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters in a pipeline: loaded, unloaded, recorded, beside quantised weights, and from the command line."""

import shutil

import numpy as np
import oracle_pipeline as oracle
import pytest
import tiny
from adapter_layouts import LAYOUTS
from oracle_pipeline import pixels
from oracle_torch import drawn_for, torch_flux
from safetensors.numpy import load_file, save_file

from convert.__main__ import main as convert
from uso_jax import weights
from uso_jax.commands import generate
from uso_jax.common.errors import InputError
from uso_jax.images import files

pytestmark = pytest.mark.slow  # compiles the whole pipeline

ASK = dict(prompt="a red fox", seed=3)


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights, an adapter of the whole model, and USO's own with its projector."""
    path = tmp_path_factory.mktemp("adapters")
    oracle.write(path / "w")
    whole, _ = LAYOUTS["diffusers"].make(drawn_for(torch_flux(oracle.FLUX), 0), seed=4)
    save_file(whole, path / "turbo.safetensors")
    convert(["export", str(path / "w"), "--format", "uso", "--to", str(path / "uso")])
    return path


def test_load_and_unload(folder):
    pipe = oracle.open_pipeline(folder / "w")
    numbers = lambda: {path: np.asarray(value) for path, value in pipe.sampler.params.items()}
    plain, before = pixels(pipe(**ASK)), numbers()
    steps = dict(pipe.sampler.steps)
    assert pipe.load_adapter(folder / "turbo.safetensors", strength=0.5) == "turbo"
    half = pixels(pipe(**ASK))
    assert np.abs(half - plain).max() > 10 and pipe.sampler.steps == steps  # nothing was compiled again
    (record,) = pipe(**ASK).records
    (adapter,) = record["weights"]["adapters"]
    assert adapter["name"] == "turbo" and adapter["strength"] == 0.5 and len(adapter["sha256"]) == 64
    assert pipe.load_adapter(folder / "turbo.safetensors", strength=0.5) == "turbo_2"
    whole = pixels(pipe(**ASK))
    pipe.unload("turbo")
    assert np.array_equal(pixels(pipe(**ASK)), half) and pipe.adapters == {"turbo_2": 0.5}
    pipe.unload("turbo_2")
    assert np.array_equal(pixels(pipe(**ASK)), plain)
    np.testing.assert_equal(numbers(), before)  # merged anew from the stored numbers
    assert "adapters" not in pipe(**ASK).records[0]["weights"]
    # Half twice is the whole, and an adapter from the start is one loaded later.
    again = oracle.open_pipeline(folder / "w", adapters=[(folder / "turbo.safetensors", 1.0)])
    assert np.abs(pixels(again(**ASK)) - whole).max() <= 1

    for call, message in (
        (lambda: pipe.unload("turbo"), "loaded are none"),
        (lambda: pipe.load_adapter(folder / "turbo.safetensors", strength=float("nan")), "finite number"),
        (lambda: pipe.load_adapter(folder / "nothing.safetensors"), "does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    broken = load_file(folder / "turbo.safetensors")
    broken["transformer.x_embedder.lora_A.weight"][0, 0] = np.inf
    save_file(broken, folder / "broken.safetensors")
    with pytest.raises(InputError, match="NaN or infinite"):
        pipe.load_adapter(folder / "broken.safetensors")
    assert np.array_equal(pixels(pipe(**ASK)), plain) and not pipe.adapters


def test_own_adapters_beside_the_transformer(folder):
    merged, beside = (oracle.open_pipeline(folder / "w", merge=merge) for merge in (True, False))
    added = {path for path in beside.sampler.params if "/processor/" in path}
    assert added and merged.sampler.params.keys() == beside.sampler.params.keys() - added
    got, want = (one(**ASK) for one in (merged, beside))
    assert np.abs(pixels(got) - pixels(want)).max() <= 1
    (plain,), (noted,) = (one.records for one in (got, want))
    assert noted["weights"] == plain["weights"] | {"merge": False}


def test_a_base_without_adapters_and_projector(folder, tmp_path):
    """What was the weights' own adapter and projector comes from a folder, and the images are the same."""
    for name in ("transformer", "autoencoder", "siglip", "t5", "clip", "tokenizer_t5", "tokenizer_clip"):
        shutil.copytree(folder / "w" / name, tmp_path / "w" / name)
    shutil.copy(folder / "w" / "pipeline.json", tmp_path / "w")
    style = dict(prompt="a house", styles=[oracle.photo(4, 70, 33)], seed=2)
    want = pixels(oracle.open_pipeline(folder / "w")(**style))
    pipe = oracle.open_pipeline(tmp_path / "w")
    with pytest.raises(InputError, match="no projector"):
        pipe(**style)
    # The layers that the projector reads are not in its file, and the tiny tower is not SigLIP's.
    assert pipe.load_adapter(folder / "w", name="mine") == "mine"
    assert np.abs(pixels(pipe(**style)) - want).max() <= 1
    pipe.unload("mine")
    with pytest.raises(InputError, match="no projector"):
        pipe(**style)
    with pytest.raises(InputError, match="holds no style projector"):
        oracle.open_pipeline(tmp_path / "w", projector=folder / "turbo.safetensors")


def test_beside_quantised_weights(folder, tmp_path):
    shutil.copytree(folder / "w", tmp_path / "w")
    args = ["merge", str(folder / "w"), f"{folder / 'turbo.safetensors'}=0.1", "--to", str(tmp_path / "q")]
    convert([*args, "--quantize", "int8"])
    assert weights.manifest(tmp_path / "q", "transformer")["quantization"]["mode"] == "int8"
    pipe = oracle.open_pipeline(tmp_path / "q")
    plain = pixels(pipe(**ASK))
    with pytest.raises(InputError, match="uso-convert merge"):
        pipe.load_adapter(folder / "turbo.safetensors")
    rank = pipe.system.config.transformer.lora_rank
    lora = folder / "uso" / "dit_lora.safetensors"
    pipe.load_adapter(lora, strength=-1, name="minus")  # takes the weights' own adapter away
    assert pipe.system.config.transformer.lora_rank == 2 * rank
    away = pixels(pipe(**ASK))
    assert np.abs(away - plain).max() > 5
    pipe.unload("minus")
    assert np.array_equal(pixels(pipe(**ASK)), plain)
    shutil.rmtree(tmp_path / "q" / "lora")
    assert np.abs(pixels(oracle.open_pipeline(tmp_path / "q")(**ASK)) - away).max() <= 1


def test_command_line(folder, tmp_path, capsys):
    args = ["--weights", str(folder / "w"), "--prompt", "a fox", "--save_path", str(tmp_path)]
    lora = ["--lora", f"{folder / 'turbo.safetensors'}=0.5", "--lora", str(folder / "uso")]
    generate.main([*args, *lora])
    generate.main(args)
    adapted, plain = sorted(
        tmp_path.glob("*.png"), key=lambda path: "adapters" not in files.read_record(path)["weights"]
    )
    names = [(one["name"], one["strength"]) for one in files.read_record(adapted)["weights"]["adapters"]]
    assert names == [("turbo", 0.5), ("uso", 1.0)] and "adapters" not in files.read_record(plain)["weights"]
    with pytest.raises(SystemExit) as caught:
        generate.main([*args, "--lora", "nothing=1"])
    assert caught.value.code == 2 and "--lora 'nothing=1': nothing does not exist" in capsys.readouterr().err
