# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters of every layout, added to weights as they are read: the velocities equal those of merged torch models."""

import argparse
import functools
import types

import adapter_layouts
import converted
import diffusers
import jax
import numpy as np
import oracle_flux2
import peft
import pytest
import torch
from adapter_layouts import LAYOUTS
from comparison import error
from converted import TOLERANCE
from oracle_torch import drawn_for, fill, flux_names, torch_flux
from safetensors.numpy import save_file

from convert.__main__ import main
from uso_jax import mini, params, weights
from uso_jax.commands import adapter_flags
from uso_jax.common.errors import InputError
from uso_jax.models.components import split_transformer
from uso_jax.models.flux import Flux, FluxConfig
from uso_jax.params import ModelDef
from uso_jax.weights import manifest_configs
from uso_jax.weights.adapters import adapter
from uso_jax.weights.adapters.adapted import Adapted
from uso_jax.weights.adapters.arrays import AdaptedArray
from uso_jax.weights.adapters.sources import parse_adapter
from uso_jax.weights.tables.flux import LORA, TRANSFORMER
from uso_jax.weights.tables.table import to_flax, to_torch

pytestmark = pytest.mark.usefixtures("cheap_compilation")

CONFIG = FluxConfig.tiny(lora_rank=0, projector=None)
TEXT = {"lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": np.ones((), "f4")}


@functools.cache
def base() -> dict[str, np.ndarray]:
    """The base's weights in diffusers' names."""
    return drawn_for(torch_flux(CONFIG), 0)


def diffusers_names(ours: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Undo `flux_names`: number all elements, rename the numbers, and put each element where its number was."""
    ids, count = {}, 0
    for name, value in base().items():
        ids[name] = np.arange(count, count + value.size).reshape(value.shape)
        count += value.size
    flat = np.empty(count)
    for name, numbers in flux_names(ids).items():
        flat[numbers.reshape(-1)] = ours[name].reshape(-1)
    return {name: flat[numbers].astype(np.float32) for name, numbers in ids.items()}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "w"
    shapes = params.shapes(lambda rngs: Flux(CONFIG, rngs=rngs))
    values = to_flax(TRANSFORMER, shapes, flux_names(base()).items())
    weights.save(folder, "transformer", values, {"config": manifest_configs.describe("transformer", CONFIG)})
    return folder


@functools.cache
def inputs() -> dict[str, np.ndarray]:
    rng, c = np.random.default_rng(3), CONFIG
    ids = np.stack([np.zeros(6), np.arange(6) // 3, np.arange(6) % 3], -1)
    drawn = {"img": (1, 6, c.in_channels), "txt": (1, 5, c.context_in_dim), "y": (1, c.vec_in_dim)}
    values = {name: rng.normal(size=shape) for name, shape in drawn.items()}
    values |= {"t": np.array([0.7]), "guidance": np.array([3.5]), "ids": ids}
    return {name: value.astype(np.float32) for name, value in values.items()}


@functools.cache
def program(config: FluxConfig):
    structure, x = ModelDef(lambda rngs: Flux(config, rngs=rngs)), jax.tree.map(jax.numpy.asarray, inputs())
    run = lambda p: structure(p)(x["img"], x["ids"][None], x["txt"], x["t"], x["y"], x["guidance"])
    return structure, jax.jit(run)


def ours(directory, *paths, strength=1.0, merge=False) -> np.ndarray:
    """Return the velocity of a directory with adapters; `merge`: with its own merged."""
    found = adapter.open_adapters(directory, [(path, strength) for path in paths])
    both = Adapted(directory, found, merge=merge)
    structure, run = program(both.config(weights.config(directory, "transformer", dtype="float32", remat="none")))
    changed, loaded = both.arrays(), {}
    for component, shapes in split_transformer(structure.shapes).items():
        own = changed.get(component, {})
        stored = weights.load(directory, component, shapes) if shapes and own.keys() != shapes.keys() else {}
        loaded |= stored | {
            path: np.asarray(array.part((slice(None),) * len(array.shape))) for path, array in own.items()
        }
    return np.asarray(run(loaded))


@torch.no_grad()
def theirs(model) -> np.ndarray:
    x = {name: torch.from_numpy(value) for name, value in inputs().items()}
    return model(
        hidden_states=x["img"], encoder_hidden_states=x["txt"], pooled_projections=x["y"], timestep=x["t"],
        guidance=x["guidance"], img_ids=x["ids"], txt_ids=torch.zeros(5, 3),
    ).sample.numpy()  # fmt: skip


def torch_model(values=None):
    return fill(torch_flux(CONFIG), dict(values or base())).eval()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_merged(name, directory, tmp_path):
    layout = LAYOUTS[name]
    tensors, merged = layout.make(flux_names(base()) if layout.bfl else base())
    save_file(tensors | TEXT, tmp_path / "a.safetensors")
    want = theirs(torch_model(diffusers_names(merged) if layout.bfl else merged))
    got = ours(directory, tmp_path / "a.safetensors")
    assert error(got, want) < TOLERANCE
    assert error(ours(directory), want) > 0.1
    (opened,) = adapter.open_adapters(directory, [(tmp_path / "a.safetensors", 1)])
    assert "text encoders (1 tensors)" in opened.notes[0]


@pytest.mark.parametrize("strength", (0.5, -1.0))
@pytest.mark.parametrize("name", ("ai-toolkit", "kohya_dora", "black-forest-labs"))
@pytest.mark.slow  # compiles two models
def test_strength_scales_the_change(name, strength, directory, tmp_path):
    tensors, merged = LAYOUTS[name].make(plain := flux_names(base()))
    save_file(tensors, tmp_path / "a.safetensors")
    part = {key: value + strength * (merged[key] - value) for key, value in plain.items()}
    want = theirs(torch_model(diffusers_names(part)))
    assert error(ours(directory, tmp_path / "a.safetensors", strength=strength), want) < TOLERANCE


@pytest.mark.parametrize("method", ("lora", "rslora", "dora", "loha", "lokr"))
@pytest.mark.slow  # compiles two models
def test_a_folder_of_peft(method, directory, tmp_path):
    targets = r".*(to_q|add_v_proj|to_out\.0|ff\.net\.2|proj_mlp|norm1\.linear|norm_out\.linear|x_embedder)"
    more = {"alpha_pattern": {"to_q": 7}, "rank_pattern": {"proj_mlp": 2}}
    config = {
        "lora": lambda: peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, **more),
        "rslora": lambda: peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, use_rslora=True),
        "dora": lambda: peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, use_dora=True),
        "loha": lambda: peft.LoHaConfig(r=3, alpha=5, target_modules=targets),
        "lokr": lambda: peft.LoKrConfig(r=3, alpha=5, target_modules=targets),
    }[method]()
    model = peft.get_peft_model(torch_model(), config)
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        if value.requires_grad:
            noise = 0.2 * torch.randn(value.shape, generator=generator)
            value.data = value * (1 + noise) if "magnitude" in name else noise
    model.eval().save_pretrained(tmp_path / "peft")
    want = theirs(model)
    assert error(ours(directory, tmp_path / "peft"), want) < TOLERANCE
    assert error(ours(directory), want) > 0.02


def uso_tensors(seed: int = 5, rank: int = 4) -> dict[str, np.ndarray]:
    """USO's adapters with every number drawn."""
    config = FluxConfig.tiny(lora_rank=rank, projector=None)
    shapes = split_transformer(params.shapes(lambda rngs: Flux(config, rngs=rngs)))["lora"]
    rng = np.random.default_rng(seed)
    values = {path: 0.2 * rng.normal(size=struct.shape).astype(np.float32) for path, struct in shapes.items()}
    return dict(to_torch(LORA, shapes, values))


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_uso_with_a_whole_model_adapter_equals_diffusers_with_both(directory, tmp_path):
    save_file(uso_tensors(), tmp_path / "dit_lora.safetensors")
    turbo, _ = LAYOUTS["diffusers"].make(base(), seed=8)
    save_file(turbo, tmp_path / "turbo.safetensors")
    got = ours(directory, tmp_path / "dit_lora.safetensors", tmp_path / "turbo.safetensors", strength=0.6)

    tensors = {key: torch.tensor(value) for key, value in uso_tensors().items()}
    model = torch_model()
    model.load_lora_adapter(diffusers.FluxPipeline.lora_state_dict(tensors), prefix="transformer", adapter_name="uso")
    turbo = {key: torch.tensor(value) for key, value in turbo.items()}
    model.load_lora_adapter(turbo, prefix="transformer", adapter_name="turbo")
    model.set_adapters(["uso", "turbo"], [0.6, 0.6])
    assert error(got, theirs(model)) < TOLERANCE
    model.set_adapters(["uso"], [0.6])
    assert error(got, theirs(model)) > 0.05

    # The same with USO's adapters in the weights directory, where they stay low-rank.
    main(["import", str(tmp_path / "dit_lora.safetensors"), "--to", str(tmp_path / "w")])
    plain = weights.read(directory, "transformer")
    weights.save(tmp_path / "w", "transformer", plain, {"config": weights.manifest(directory, "transformer")["config"]})
    model.set_adapters(["uso", "turbo"], [1.0, 0.6])
    assert error(ours(tmp_path / "w", tmp_path / "turbo.safetensors", strength=0.6), theirs(model)) < TOLERANCE
    # A weights directory is an adapter too.
    model.set_adapters(["uso"], [0.3])
    assert error(ours(directory, tmp_path / "w", strength=0.3), theirs(model)) < TOLERANCE


def with_own(directory, folder, seed: int = 5, rank: int = 4) -> None:
    """Write a directory like another one, and its own adapters; a file beside it has the same adapters."""
    save_file(uso_tensors(seed, rank), file := folder.with_suffix(".safetensors"))
    main(["import", str(file), "--to", str(folder)])
    config = {"config": weights.manifest(directory, "transformer")["config"]}
    weights.save(folder, "transformer", weights.read(directory, "transformer"), config)


def merged(*args) -> dict[str, np.ndarray]:
    """Return the changed parameters of a directory whose own adapters are merged, which must be all that there is."""
    found = Adapted(*args, merge=True).arrays()
    assert found.keys() == {"transformer"}
    return {path: np.asarray(array) for path, array in found["transformer"].items()}


def test_own_adapters_are_merged_for_sampling(directory, tmp_path):
    with_own(directory, tmp_path / "a")
    beside = ours(tmp_path / "a")
    assert error(ours(tmp_path / "a", merge=True), beside) < 1e-5 and error(ours(directory), beside) > 0.05
    config = Adapted(tmp_path / "a", merge=True).config(weights.config(tmp_path / "a", "transformer"))
    assert config.lora_rank == 0 and not config.lora_rules
    args = [str(tmp_path / "a"), str(tmp_path / "a.safetensors"), "--to", str(tmp_path / "q")]
    main(["merge", *args, "--quantize", "int8"])
    quantised = Adapted(tmp_path / "q", merge=True)
    assert not any(quantised.arrays().values())
    assert quantised.config(weights.config(tmp_path / "q", "transformer")).lora_rank == 4


def test_merging_again_begins_with_the_stored_numbers(directory, tmp_path):
    with_own(directory, tmp_path / "a")
    with_own(directory, tmp_path / "b", 6, 2)
    base = weights.read(directory, "transformer")
    small = {key: tensor for key, tensor in uso_tensors(7).items() if "single_blocks.1.processor.proj_lora" in key}
    save_file(small, tmp_path / "small.safetensors")
    opened = lambda name, strength=1.0: adapter.open_adapters(tmp_path / "a", [(tmp_path / name, strength)])
    first = Adapted(tmp_path / "a", merge=True)
    with_small = first.with_adapters(opened("small.safetensors", 0.3))
    assert with_small.changed(first)["transformer"] == {"single_blocks/linear2/kernel"}
    again = with_small.with_adapters([])
    assert again.changed(with_small)["transformer"] == {"single_blocks/linear2/kernel"}
    for path, want in merged(tmp_path / "a").items():
        np.testing.assert_array_equal(np.asarray(again.arrays()["transformer"][path]), want)
        assert np.abs(want - np.asarray(base[path])).max() > 0.01
    # A run's adapters take the place of the own ones without a trace of them.
    np.testing.assert_equal(merged(tmp_path / "a", opened("b")), merged(directory, opened("b.safetensors")))


def test_shards_share_the_layers_that_are_computed(directory, tmp_path, monkeypatch):
    with_own(directory, tmp_path / "a")
    array = Adapted(tmp_path / "a", merge=True).arrays()["transformer"]["double_blocks/img_attn/qkv/kernel"]
    whole, computed, compute = np.asarray(array), [], AdaptedArray._layer
    monkeypatch.setattr(AdaptedArray, "_layer", lambda self, layer: computed.append(layer) or compute(self, layer))
    layers, inputs, outputs = array.shape
    indices = [
        (slice(None), slice(i, i + inputs // 2), slice(o, o + outputs // 2))
        for i in (0, inputs // 2)
        for o in (0, outputs // 2)
    ]
    for index, part in zip(indices, array.parts(indices, np.float16), strict=True):
        np.testing.assert_array_equal(part, whole[index].astype(np.float16))
    assert computed == list(range(layers))
    (last,) = array.parts([(slice(layers - 1, layers), slice(None), slice(3))])
    np.testing.assert_array_equal(last, whole[-1:, :, :3])
    assert computed[layers:] == [layers - 1]


def test_a_directory_takes_the_place_of_the_weights_own_adapter(directory, tmp_path):
    """A run goes on from the adapter of its weights, which must not count twice; a file is added."""
    for name, seed, rank in (("a", 5, 4), ("b", 6, 2)):
        with_own(directory, tmp_path / name, seed, rank)
    assert error(ours(tmp_path / "a", tmp_path / "b"), ours(tmp_path / "b")) < TOLERANCE
    assert error(ours(tmp_path / "a", tmp_path / "a", strength=0.3), ours(tmp_path / "a")) < TOLERANCE
    added = ours(tmp_path / "a", tmp_path / "b.safetensors")
    assert error(added, ours(directory, tmp_path / "a.safetensors", tmp_path / "b.safetensors")) < TOLERANCE
    assert error(added, ours(tmp_path / "b")) > 0.05


# ---------------------------------------------------------------------------------------------------- merge


@pytest.mark.parametrize("mode", ("", "int8"))
def test_merge(mode, directory, tmp_path, capsys):
    tensors, _ = LAYOUTS["kohya"].make(flux_names(base()))
    save_file(tensors, tmp_path / "a.safetensors")
    (directory / "pipeline.json").write_text("{}")
    target = str(tmp_path / "merged")
    args = ["merge", str(directory), f"{tmp_path / 'a.safetensors'}=0.5", "--to", target]
    main([*args, *(["--quantize", mode] if mode else [])])
    assert "strength 0.5" in capsys.readouterr().out and (tmp_path / "merged" / "pipeline.json").exists()
    want = ours(directory, tmp_path / "a.safetensors", strength=0.5)
    assert error(ours(target), want) < (0.1 if mode else 1e-6)
    record = weights.manifest(target, "transformer")
    assert record["sources"][-1]["strength"] == 0.5 and len(record["sources"][-1]["sha256"]) == 64
    weights.verify(target)
    if mode:  # too late to merge more, or other layers than those beside which adapters lie
        for call in (lambda: main([*args[:1], target, *args[2:4], str(tmp_path / "again")]),):
            with pytest.raises(SystemExit):
                call()
        assert "is quantised (int8)" in capsys.readouterr().err and not (tmp_path / "again").exists()
        with pytest.raises(InputError, match="uso-convert merge"):
            ours(target, tmp_path / "a.safetensors")
        save_file(uso_tensors(), tmp_path / "dit_lora.safetensors")
        save_file(uso_tensors(6, 2), tmp_path / "more.safetensors")
        both = [tmp_path / "dit_lora.safetensors", tmp_path / "more.safetensors"]
        assert error(ours(target, *both), ours(target)) > 0.1
        # Beside quantised weights the sum is exact: the same adapters merged into the dequantised numbers.
        whole = {path: np.asarray(array) for path, array in weights.read(target, "transformer").items()}
        weights.save(tmp_path / "whole", "transformer", whole, {"config": record["config"]})
        assert error(ours(target, *both), ours(tmp_path / "whole", *both)) < 1e-5


# ---------------------------------------------------------------------------------------------------- errors


def one(key: str, *shape: int) -> dict[str, np.ndarray]:
    return {f"{key}.lora_A.weight": np.ones((2, shape[1]), "f4"), f"{key}.lora_B.weight": np.ones((shape[0], 2), "f4")}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (one("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", 8, 8), "Stable Diffusion or SDXL"),
        (one("diffusion_model.joint_blocks.0.x_block.attn.qkv", 8, 8), "Stable Diffusion 3"),
        (one("diffusion_model.blocks.0.self_attn.q", 8, 8), "Wan"),
        (one("transformer.transformer_blocks.0.img_mlp.net.2", 8, 8), "Qwen-Image"),
        (one("diffusion_model.distilled_guidance_layer.in_proj", 8, 8), "Chroma"),
        (one("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", 288, 32), "is an adapter for FLUX.2"),
        (one("diffusion_model.single_blocks.0.linear2", 32, 128), "is an adapter for FLUX.2"),
        (one("diffusion_model.double_blocks.7.img_attn.proj", 32, 32), "double_blocks.7.img_attn.proj is no module"),
        (one("diffusion_model.double_blocks.0.img_attn.proj", 64, 64), "changes a weight of [64, 64]"),
        (one("img_in", 32, 32), "a control adapter"),
        ({"text_encoder.text_model.x.lora_A.weight": np.ones((2, 2), "f4")}, "text encoders only"),
        ({"feature_embedder.high_layer_norm.weight": np.ones(2, "f4")}, "no complete style projector"),
        ({"diffusion_model.double_blocks.0.img_attn.proj.oft_blocks": np.ones((2, 2, 2), "f4")}, "of the kind OFT"),
        ({"lora_unet_double_blocks_0_img_attn_proj.lora_up.weight": np.ones((32, 2), "f4")}, "lacks down"),
        ({"double_blocks.0.img_attn.proj.lora_A.weight": np.ones((2, 32), "i4")}, "not floating"),
    ],
)  # fmt: skip
def test_what_does_not_fit(tensors, message, directory, tmp_path):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(InputError) as caught:
        adapter.open_adapters(directory, [(tmp_path / "a.safetensors", 1)])
    assert message in str(caught.value) and str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_that_are_not_finite(directory, tmp_path):
    tensors, _ = LAYOUTS["ai-toolkit"].make(flux_names(base()))
    tensors["diffusion_model.img_in.lora_A.weight"][0, 0] = np.nan
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"a\.safetensors: what it adds to img_in\.weight is NaN"):
        ours(directory, tmp_path / "a.safetensors")


def test_paths_and_strengths(tmp_path):
    for name in ("a", "b=2", "c"):
        (tmp_path / name).mkdir()
    assert parse_adapter(f"{tmp_path}/a") == (f"{tmp_path}/a", 1.0)
    assert parse_adapter(f"{tmp_path}/a=-0.5") == (f"{tmp_path}/a", -0.5)
    assert parse_adapter(f"{tmp_path}/b=2") == (f"{tmp_path}/b=2", 1.0)
    for text, message in ((f"{tmp_path}/a=x", "must be a number"), (f"{tmp_path}/a=nan", "must be a number"),
                          (f"{tmp_path}/d", "does not exist"), (f"{tmp_path}/d=1", "does not exist")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            parse_adapter(text, "--lora ")
    with pytest.raises(InputError, match="no weights directory, no workdir"):
        adapter.open_projector(tmp_path / "c")


def test_a_projector_of_another_kind_is_taken():
    (mine,) = adapter.open_adapters(mini.WEIGHTS, [(mini.WEIGHTS, 1.0)])
    plain = weights.config(mini.WEIGHTS, "transformer")
    assert Adapted(mini.WEIGHTS, [mine]).config(plain).projector.kind == "level_resampler"
    with pytest.raises(InputError, match=f"the projector is for a transformer of width {plain.hidden_size}, this one"):
        Adapted(mini.WEIGHTS, [mine]).config(FluxConfig.tiny(lora_rank=0, projector=None))


def test_the_flags_are_keywords_of_the_pipeline(tmp_path):
    parser = argparse.ArgumentParser()
    adapter_flags.add_adapter_flags(parser)
    given = lambda *arguments: adapter_flags.given_adapters(parser.parse_args(arguments))
    assert given() == {"adapters": [], "projector": None, "merge": True}
    want = {"adapters": [(str(tmp_path), 0.5)], "projector": "p", "merge": False}
    assert given("--lora", f"{tmp_path}=0.5", "--projector", "p", "--no_merge") == want


# ---------------------------------------------------------------------------------------------------- FLUX.2


@pytest.fixture(scope="module")
def klein(tmp_path_factory):
    """A tiny FLUX.2, and its twin of diffusers."""
    mine, other = oracle_flux2.transformer_pair(guidance=False)
    folder = tmp_path_factory.mktemp("klein") / "w"
    config = manifest_configs.describe("transformer", mine.config)
    weights.save(folder, "transformer", params.from_model(mine), {"config": config})
    return types.SimpleNamespace(directory=folder, config=mine.config, model=other)


@pytest.mark.parametrize("name", ("diffusers", "lycoris_lokr", "onetrainer_dora"))
@pytest.mark.slow  # compiles two models
def test_flux2_is_merged(name, klein, tmp_path):
    tensors, merged = LAYOUTS[name].make(converted.state(klein.model))
    save_file(tensors, tmp_path / "a.safetensors")
    assert_merged(klein, tmp_path / "a.safetensors", merged)


def assert_merged(klein, path, merged):
    """Compare the merged parameters themselves, through the converter of transformers."""
    main(["merge", str(klein.directory), str(path), "--to", str(path.parent / "m")])
    args = ["export", str(path.parent / "m"), "--component", "transformer", "--format", "diffusers", "--to"]
    main([*args, str(path.parent / "d")])
    got = converted.state(diffusers.Flux2Transformer2DModel.from_pretrained(path.parent / "d"))
    assert got.keys() == merged.keys()
    for key, value in merged.items():
        np.testing.assert_allclose(got[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ("ai-toolkit", "kohya"))
@pytest.mark.slow  # compiles two models
def test_flux2_in_original_names_is_what_diffusers_makes_of_it(name, klein, tmp_path):
    args = ["export", str(klein.directory), "--component", "transformer", "--format", "bfl", "--to"]
    main([*args, str(tmp_path / "b.safetensors")])
    plain = converted.load_file(tmp_path / "b.safetensors")
    layout = adapter_layouts.Layout(True, LAYOUTS[name].key, LAYOUTS[name].method, only="_blocks.")
    tensors, _ = layout.make(plain)
    save_file(tensors, tmp_path / "a.safetensors")
    state = diffusers.Flux2KleinPipeline.lora_state_dict({key: torch.tensor(x) for key, x in tensors.items()})
    model = diffusers.Flux2Transformer2DModel.from_config(klein.model.config)
    model.load_state_dict(klein.model.state_dict())
    model.load_lora_adapter(state, prefix="transformer")
    model.fuse_lora()
    model.unload_lora()
    assert_merged(klein, tmp_path / "a.safetensors", converted.state(model))
