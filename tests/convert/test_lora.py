# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters in and out in everybody's layouts: the same numbers, and the same outputs in the programs that load them."""

import dataclasses
import functools
import json
import re
import shutil

import converted
import diffusers
import golden_files as golden
import ml_dtypes
import numpy as np
import peft
import pytest
import torch
from comparison import error
from converted import TOLERANCE, config_file, equal
from safetensors.numpy import load_file, save_file

from convert.__main__ import main
from uso_jax import params, weights
from uso_jax.common.errors import InputError
from uso_jax.models.components import ADAPTERS, split_transformer
from uso_jax.models.flux import Flux, FluxConfig
from uso_jax.weights import manifest_configs
from uso_jax.weights.adapters.names import adapter_sizes
from uso_jax.weights.tables.flux import LORA, TRANSFORMER
from uso_jax.weights.tables.table import to_torch

QKV, ADDED = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")
BFL = {
    "processor.qkv_lora1": "img_attn.qkv", "processor.proj_lora1": "img_attn.proj", "processor.qkv_lora": "linear1_qkv",
    "processor.qkv_lora2": "txt_attn.qkv", "processor.proj_lora2": "txt_attn.proj", "processor.proj_lora": "linear2",
}  # fmt: skip


@functools.cache
def base() -> dict[str, np.ndarray]:
    """A tiny transformer's tensors in black-forest-labs names, every one drawn anew."""
    return draw(TRANSFORMER, "transformer", seed=1)


@functools.cache
def uso(rank: int = 4, depth: int = 2, singles: int = 2) -> dict[str, np.ndarray]:
    """Adapters in USO's layout, every tensor drawn anew."""
    return draw(LORA, "lora", seed=2, lora_rank=rank, depth=depth, depth_single_blocks=singles)


def draw(rows, component, seed, **changes):
    config = FluxConfig.tiny(projector=None, **changes)
    shapes = split_transformer(params.shapes(lambda rngs: Flux(config, rngs=rngs)))[component]
    rng = np.random.default_rng(seed)
    values = {}
    for path, struct in shapes.items():
        noise = rng.normal(size=struct.shape).astype(np.float32)
        values[path] = (
            1 + 0.3 * noise
            if path.endswith("scale")
            else 0.8 * noise * (struct.shape[-2] ** -0.5 if path.endswith("kernel") else 1)
        )
    return dict(to_torch(rows, shapes, values))


def imported(tmp_path, tensors, *options, metadata=None) -> dict[str, np.ndarray]:
    """Import tensors as a lora and give what `export --format uso` makes of it."""
    save_file(tensors, tmp_path / "in.safetensors", metadata=metadata)
    main(["import", str(tmp_path / "in.safetensors"), "--to", str(tmp_path / "w"), *config_args(tmp_path), *options])
    main(["export", str(tmp_path / "w"), "--format", "uso", "--to", str(tmp_path / "o.safetensors")])
    return load_file(tmp_path / "o.safetensors")


def config_args(tmp_path):
    return ["--config", config_file(tmp_path, {"flux": {"depth": 2, "depth_single_blocks": 2, "mlp_ratio": 4.0}})]


def fails(capsys, tmp_path, tensors, *options) -> str:
    save_file(tensors, tmp_path / "in.safetensors")
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["import", str(tmp_path / "in.safetensors"), "--to", str(tmp_path / "w"), *options])
    assert caught.value.code == 2 and not (tmp_path / "w").exists()
    return capsys.readouterr().err


def split_key(key):
    return re.fullmatch(r"((double|single)_blocks\.(\d+))\.(processor\.\w+)\.(down|up)\.weight", key).groups()


# ---------------------------------------------------------------------------------------------------- layouts


def comfy(tensors):
    out = {}
    for key, value in tensors.items():
        block, _, _, name, which = split_key(key)
        out[f"diffusion_model.{block}.{BFL[name]}.lora_{which}.weight"] = value
    return out


def kohya(tensors, alpha):
    out = {}
    for key, value in tensors.items():
        block, _, _, name, which = split_key(key)
        module = BFL[name].replace("linear1_qkv", "linear1")
        stem = f"lora_unet_{block}_{module}".replace(".", "_")
        if module == "linear1" and which == "up":
            value = np.concatenate([value, np.zeros((128, value.shape[1]), value.dtype)])
        out[f"{stem}.lora_{which}.weight"] = value
        out[f"{stem}.alpha"] = np.asarray(alpha, value.dtype)
    return out


def separate(tensors, prefix="transformer."):
    """diffusers' layout, q, k and v each with the whole down."""
    out = {}
    for key, value in tensors.items():
        _, kind, i, name, which = split_key(key)
        block = f"{prefix}transformer_blocks.{i}" if kind == "double" else f"{prefix}single_transformer_blocks.{i}"
        half = "lora_A.weight" if which == "down" else "lora_B.weight"
        whole = {
            "processor.proj_lora1": "attn.to_out.0",
            "processor.proj_lora2": "attn.to_add_out",
            "processor.proj_lora": "proj_out",
        }
        if name in whole:
            out[f"{block}.{whole[name]}.{half}"] = value
            continue
        for j, part in enumerate(ADDED if name == "processor.qkv_lora2" else QKV):
            cut = value if which == "down" else value[j * 32 : (j + 1) * 32]
            out[f"{block}.attn.{part}.{half}"] = np.ascontiguousarray(cut)
    return out


def test_the_layouts_are_told_apart(tmp_path, capsys):
    for name, tensors in {
        "uso-lora": uso(), "comfy-lora": comfy(uso()), "kohya-lora": kohya(uso(), 4.0),
        "diffusers-lora": separate(uso()),
    }.items():  # fmt: skip
        save_file(tensors, tmp_path / "x")
        main(["inspect", str(tmp_path / "x")])
        out = capsys.readouterr().out
        assert f"{name}:" in out and "rank 4" in out and "nothing missing" in out, out


def test_same_numbers_from_every_layout(tmp_path):
    for i, tensors in enumerate(
        (comfy(uso()), kohya(uso(), 4.0), separate(uso()), separate(uso(), "base_model.model."), separate(uso(), ""),
         separate(uso(), "diffusion_model."), {k.replace("_A.", "_A.default."): v for k, v in separate(uso()).items()})
    ):  # fmt: skip
        (tmp_path / str(i)).mkdir()
        got = imported(tmp_path / str(i), tensors)
        assert got.keys() == uso().keys()
        for key, value in uso().items():
            assert got[key].tobytes() == value.tobytes(), (i, key)


@pytest.mark.parametrize("dtype", (np.float32, ml_dtypes.bfloat16, np.float16))
@pytest.mark.parametrize("alpha", (8.0, 3.0))
def test_alpha_goes_into_up(alpha, dtype, tmp_path):
    tensors = {key: value.astype(dtype) for key, value in uso().items()}
    got = imported(tmp_path, kohya(tensors, alpha))
    for key, value in tensors.items():
        factor = np.float32(alpha / 4) if ".up." in key else np.float32(1)
        np.testing.assert_array_equal(got[key].astype(np.float32), value.astype(np.float32) * factor)


@pytest.mark.parametrize("where", ("metadata", "peft", "rslora"))
def test_alpha_beside_the_tensors(where, tmp_path):
    metadata = None
    if where == "metadata":
        metadata = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8})}
    else:
        config = {"r": 4, "lora_alpha": 8 if where == "peft" else 4, "use_rslora": where == "rslora"}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    got = imported(tmp_path, separate(uso(), "transformer." if metadata else "base_model.model."), metadata=metadata)
    for key, value in uso().items():
        np.testing.assert_array_equal(got[key], 2 * value if ".up." in key else value)


def product(tensors, stem):
    return tensors[f"{stem}.up.weight"].astype(np.float64) @ tensors[f"{stem}.down.weight"].astype(np.float64)


def test_separate_q_k_v_become_one_adapter(tmp_path, capsys):
    tensors, rng = separate(uso()), np.random.default_rng(3)
    for key in tensors:
        if "lora_A" in key:
            tensors[key] = rng.normal(size=tensors[key].shape).astype(np.float32)
    del tensors["transformer.transformer_blocks.1.attn.to_k.lora_A.weight"]
    del tensors["transformer.transformer_blocks.1.attn.to_k.lora_B.weight"]
    got = imported(tmp_path, tensors)
    assert weights.manifest(tmp_path / "w", "lora")["config"]["lora"]["rank"] == 12
    for kind, i, name, parts in (
        ("double", 0, "qkv_lora1", QKV), ("double", 1, "qkv_lora2", ADDED), ("single", 1, "qkv_lora", QKV),
        ("double", 1, "qkv_lora1", ("to_q", None, "to_v")), ("double", 0, "proj_lora1", ("to_out.0",)),
    ):  # fmt: skip
        block = f"transformer.{'single_' * (kind == 'single')}transformer_blocks.{i}.attn"
        halves = [
            (tensors[f"{block}.{p}.lora_B.weight"], tensors[f"{block}.{p}.lora_A.weight"]) if p else None for p in parts
        ]
        want = np.concatenate([h[0].astype(np.float64) @ h[1] if h else np.zeros((32, 32)) for h in halves])
        np.testing.assert_allclose(product(got, f"{kind}_blocks.{i}.processor.{name}"), want, rtol=1e-6, atol=1e-7)


def test_adapters_of_some_modules(tmp_path, capsys):
    part = {key: value for key, value in uso().items() if "double_blocks.1" in key and "lora1" in key}
    save_file(part, tmp_path / "x")
    main(["inspect", str(tmp_path / "x")])
    assert "flux.mlp_ratio, flux.depth, flux.depth_single_blocks; import needs" in capsys.readouterr().out
    got = imported(tmp_path, part)
    assert got.keys() == uso().keys()
    for key, value in got.items():
        np.testing.assert_array_equal(value, part.get(key, np.zeros_like(value)))


def test_mixed_ranks(tmp_path, capsys):
    tensors = dict(uso())
    stem = "double_blocks.0.processor.proj_lora1"
    tensors[f"{stem}.down.weight"] = tensors[f"{stem}.down.weight"][:2].copy()
    tensors[f"{stem}.up.weight"] = tensors[f"{stem}.up.weight"][:, :2].copy()
    assert "different ranks (2, 4)" in fails(capsys, tmp_path, tensors)
    got = imported(tmp_path, tensors, "--pad-ranks")
    for key in uso():
        stem = key.rsplit(".", 2)[0]
        np.testing.assert_allclose(product(got, stem), product(tensors, stem), rtol=1e-12)


DOWN, UP = np.ones((4, 32), "f4"), np.ones((128, 4), "f4")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"transformer.transformer_blocks.0.ff.net.0.proj.lora_A.weight": DOWN,
          "transformer.transformer_blocks.0.ff.net.0.proj.lora_B.weight": UP}, "transformer_blocks.N.ff.net.N.proj"),
        ({"transformer.single_transformer_blocks.0.proj_mlp.lora_A.weight": DOWN,
          "transformer.single_transformer_blocks.0.proj_mlp.lora_B.weight": UP}, "proj_mlp"),
        ({"transformer.transformer_blocks.0.attn.to_q.dora_scale": np.ones((32, 1), "f4")}, "DoRA"),
        ({"transformer.transformer_blocks.0.attn.to_q.alpha": np.ones(3, "f4")}, "not one number"),
        ({"transformer.transformer_blocks.0.attn.to_q.alpha": np.full((), np.nan, "f4")}, "not a finite number"),
        ({"transformer.transformer_blocks.0.attn.to_q.lora_down.weight": DOWN}, "adapted twice"),
    ],
)  # fmt: skip
def test_adapters_that_do_not_fit(more, message, tmp_path, capsys):
    assert message in fails(capsys, tmp_path, separate(uso()) | more)


def test_text_encoders_are_left_out(tmp_path, capsys):
    text = {"text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": DOWN}
    assert "text encoders only" in fails(capsys, tmp_path, text)
    assert imported(tmp_path, separate(uso()) | text).keys() == uso().keys()
    main(["inspect", str(tmp_path / "in.safetensors")])
    assert "1 tensors of text encoders are left out" in capsys.readouterr().out


def test_a_whole_linear1_with_an_mlp_part(tmp_path, capsys):
    tensors = kohya(uso(), 4.0)
    tensors["lora_unet_single_blocks_1_linear1.lora_up.weight"][-1, 0] = 1
    assert "single_blocks_1_linear1's mlp part" in fails(capsys, tmp_path, tensors)


# ---------------------------------------------------------------------------------------------------- out


def bfl_file(tmp_path, *more):
    save_file(base(), tmp_path / "base.safetensors")
    save_file(uso(), tmp_path / "lora.safetensors")
    config = config_file(tmp_path, {"flux": {"axes_dim": [4, 6, 6]}, "lora": {"scale": 1.5}})
    files = [str(tmp_path / f"{name}.safetensors") for name in ("base", "lora")]
    main(["import", *files, "--to", str(tmp_path / "w"), "--config", config])
    return tmp_path / "w"


def our_output(directory):
    return converted.run_flux(converted.load(directory, "transformer", Flux, dtype="float32", remat="none"))


def torch_base(directory, tmp_path):
    main(
        [
            "export",
            str(directory),
            "--component",
            "transformer",
            "--format",
            "diffusers",
            "--to",
            str(tmp_path / "base"),
        ]
    )
    return diffusers.FluxTransformer2DModel.from_pretrained(tmp_path / "base").eval()


def test_other_programs_load_the_exports(tmp_path):
    directory = bfl_file(tmp_path)
    want, run = our_output(directory), converted.run_torch_flux
    plain = torch_base(directory, tmp_path)
    assert error(run(plain), want) > 0.1  # the adapters matter

    main(["export", str(directory), "--format", "diffusers", "--to", str(tmp_path / "d")])
    model = torch_base(directory, tmp_path / "d")
    model.load_lora_adapter(str(tmp_path / "d" / "pytorch_lora_weights.safetensors"), prefix="transformer")
    assert error(run(model), want) < TOLERANCE

    main(["export", str(directory), "--format", "peft", "--to", str(tmp_path / "p")])
    model = peft.PeftModel.from_pretrained(torch_base(directory, tmp_path / "p"), str(tmp_path / "p"))
    assert error(run(model), want) < TOLERANCE

    # USO's own names, through diffusers' converter of that layout.
    main(["export", str(directory), "--format", "uso", "--to", str(tmp_path / "u.safetensors")])
    tensors = {key: torch.tensor(value) for key, value in load_file(tmp_path / "u.safetensors").items()}
    tensors = diffusers.FluxPipeline.lora_state_dict(tensors)
    (tmp_path / "again").mkdir()
    model = torch_base(directory, tmp_path / "again")
    model.load_lora_adapter(tensors, prefix="transformer")
    assert error(run(model), want) < TOLERANCE

    # Merged into the weights, for programs without adapters.
    main(["export", str(directory), "--component", "merged", "--format", "diffusers", "--to", str(tmp_path / "m")])
    assert error(run(diffusers.FluxTransformer2DModel.from_pretrained(tmp_path / "m").eval()), want) < TOLERANCE
    main(["export", str(directory), "--format", "bfl", "--to", str(tmp_path / "m.safetensors")])
    config = config_file(tmp_path, {"flux": {"axes_dim": [4, 6, 6]}})
    main(["import", str(tmp_path / "m.safetensors"), "--to", str(tmp_path / "w2"), "--config", config])
    assert error(our_output(tmp_path / "w2"), want) < TOLERANCE


@pytest.mark.parametrize("layout", ("diffusers", "peft", "comfy", "kohya"))
def test_our_own_exports_come_back_bit_exact(layout, tmp_path):
    save_file(uso(), tmp_path / "x")
    main(["import", str(tmp_path / "x"), "--to", str(tmp_path / "w"), *config_args(tmp_path)])
    main(["export", str(tmp_path / "w"), "--format", layout, "--to", str(tmp_path / "o")])
    file = next((tmp_path / "o").glob("*.safetensors"))
    main(["import", str(file), "--to", str(tmp_path / "w2"), *config_args(tmp_path)])
    main(["export", str(tmp_path / "w2"), "--format", "uso", "--to", str(tmp_path / "u.safetensors")])
    equal(tmp_path / "u.safetensors", uso())
    main(["export", str(tmp_path / "w2"), "--format", layout, "--to", str(tmp_path / "again")])
    equal(next((tmp_path / "again").glob("*.safetensors")), load_file(file))


@pytest.mark.parametrize("dtype", ("bf16", "fp16", "fp32"))
def test_dtypes(dtype, tmp_path):
    want = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}[dtype]
    save_file(uso(), tmp_path / "x")
    main(["import", str(tmp_path / "x"), "--to", str(tmp_path / "w")])
    main(["export", str(tmp_path / "w"), "--format", "uso", "--to", str(tmp_path / "o.safetensors"), "--dtype", dtype])
    equal(tmp_path / "o.safetensors", {key: value.astype(want) for key, value in uso().items()})


# ---------------------------------------------------------------------------------------------------- ComfyUI


def comfy_convert(tensors):
    """What comfy/lora_convert.py does with USO's adapters, which it knows by two keys."""
    assert "single_blocks.37.processor.qkv_lora.up.weight" in tensors
    assert "double_blocks.18.processor.qkv_lora2.up.weight" in tensors
    out = {}
    for key, value in tensors.items():
        name = key.replace(".down.weight", ".lora_down.weight").replace(".up.weight", ".lora_up.weight")
        for old, new in (
            ("qkv_lora1", "img_attn.qkv"), ("proj_lora1", "img_attn.proj"), ("qkv_lora2", "txt_attn.qkv"),
            ("proj_lora2", "txt_attn.proj"), ("qkv_lora", "linear1_qkv"), ("proj_lora", "linear2"),
        ):  # fmt: skip
            name = name.replace(f".processor.{old}.", f".{new}.")
        out[f"diffusion_model.{name}"] = value
    return out


def test_comfyui_recognises_and_applies_the_adapters(tmp_path):
    tensors = uso(rank=2, depth=19, singles=38)
    save_file(tensors, tmp_path / "x")
    main(["import", str(tmp_path / "x"), "--to", str(tmp_path / "w")])
    main(["export", str(tmp_path / "w"), "--format", "uso", "--to", str(tmp_path / "o")])
    found = load_file(tmp_path / "o" / "dit_lora.safetensors")
    released = golden.MANIFESTS["uso_flux_v1.0/dit_lora.safetensors"]
    assert len(found) == 304 and found.keys() == released.keys()
    converted = comfy_convert(found)
    # Each lands on a weight that ComfyUI has, `linear1_qkv` on the rows of linear1 for q, k and v.
    model = draw(TRANSFORMER, "transformer", 0, depth=19, depth_single_blocks=38)
    for key, up in converted.items():
        if key.endswith(".lora_up.weight"):
            module = key.removeprefix("diffusion_model.").removesuffix(".lora_up.weight")
            target = model[module.replace("linear1_qkv", "linear1") + ".weight"]
            rows = 3 * 32 if "linear1_qkv" in module else len(target)
            down = converted[key.replace("lora_up", "lora_down")]
            assert up.shape == (rows, 2) and down.shape == (2, target.shape[1])
    assert weights.manifest(tmp_path / "w", "lora")["config"]["flux"]["mlp_ratio"] == 4


def test_comfyui_recognises_the_projector(tmp_path):
    main(["import", str(golden.DIR / "projector_tiny.safetensors"), "--to", str(tmp_path / "w")])
    main(["export", str(tmp_path / "w"), "--format", "uso", "--to", str(tmp_path / "o")])
    found = load_file(tmp_path / "o" / "projector.safetensors")
    assert "feature_embedder.mid_layer_norm.bias" in found
    assert len(found) == 18 and found.keys() == golden.MANIFESTS["uso_flux_v1.0/projector.safetensors"].keys()


def test_a_merged_adapter_is_the_sum(tmp_path):
    main(["export", str(bfl_file(tmp_path)), "--format", "bfl", "--to", str(tmp_path / "m.safetensors")])
    merged = load_file(tmp_path / "m.safetensors")
    want = {key: value.astype(np.float64) for key, value in base().items()}
    for stem in {key.rsplit(".", 2)[0] for key in uso()}:
        block, adapter = stem.split(".processor.")
        weight = want[f"{block}.{BFL[f'processor.{adapter}']}.weight".replace("linear1_qkv", "linear1")]
        delta = 1.5 * product(uso(), stem)
        weight[: len(delta)] += delta
    assert merged.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_allclose(merged[key], value, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------------- ranks by rule

RULES = ((r".*/qkv_lora.*", 6, 0.5), ("double_blocks/processor/proj_lora2", 2, 1.0))


@pytest.mark.slow  # compiles two models
def test_ranks_by_rule_in_other_programs(tmp_path):
    """Adapters of several ranks and factors: other programs and a re-import compute what we do."""
    directory = bfl_file(tmp_path)
    section = {"rank": 4, "scale": 1.5, "rules": RULES}
    with_rules(directory, section)
    want, run = our_output(directory), converted.run_torch_flux
    assert error(run(torch_base(directory, tmp_path)), want) > 0.1
    sizes = {"to_q": 6, "to_out.0": 4, "to_add_out": 2, "proj_out": 4}
    main(["export", str(directory), "--format", "uso", "--to", str(tmp_path / "u.safetensors")])
    for layout in ("peft", "diffusers", "comfy", "kohya"):
        main(["export", str(directory), "--format", layout, "--to", str(tmp_path / layout)])
        (file,) = (tmp_path / layout).glob("*.safetensors")
        if layout in ("peft", "diffusers"):
            model = torch_base(directory, tmp_path / layout)
            if layout == "peft":
                model = peft.PeftModel.from_pretrained(model, str(tmp_path / layout))
            else:
                model.load_lora_adapter(str(file), prefix="transformer")
            assert error(run(model), want) < TOLERANCE, layout
            found = {name: next(x for k, x in model.state_dict().items() if f"{name}.lora_A" in k) for name in sizes}
            assert {name: len(down) for name, down in found.items()} == sizes, layout
        # ... and back, with the ranks of every kind of module, without padding; ComfyUI multiplies the same numbers.
        main(["import", str(file), "--to", str(tmp_path / f"w_{layout}"), *config_args(tmp_path)])
        back = adapter_sizes(weights.manifest(tmp_path / f"w_{layout}", "lora")["config"]["lora"])
        assert [size.rank for size in back.values()] == [size.rank for size in adapter_sizes(section).values()]
        main(
            [
                "export",
                str(tmp_path / f"w_{layout}"),
                "--format",
                "uso",
                "--to",
                str(tmp_path / f"{layout}_again.safetensors"),
            ]
        )
        equal(tmp_path / f"{layout}_again.safetensors", load_file(tmp_path / "u.safetensors"))
    alphas = {key: float(x) for key, x in load_file(file).items() if key.endswith(".alpha")}
    assert alphas["lora_unet_double_blocks_0_img_attn_qkv.alpha"] == 6 and set(alphas.values()) == {2, 4, 6}
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["r"] == 4 and config["rank_pattern"] == config["alpha_pattern"]
    assert config["rank_pattern"]["transformer_blocks.1.attn.to_add_out"] == 2
    assert config["rank_pattern"]["single_transformer_blocks.0.attn.to_k"] == 6


def with_rules(directory, section):
    """Replace the adapters of a weights directory by ones of these sizes, every number drawn anew."""
    config = dataclasses.replace(weights.config(directory, "transformer"), **ADAPTERS["lora"].apply(section))
    shapes = split_transformer(params.shapes(lambda rngs: Flux(config, rngs=rngs)))["lora"]
    rng = np.random.default_rng(5)
    values = {
        path: (0.8 * x.shape[-2] ** -0.5 * rng.normal(size=x.shape)).astype(np.float32) for path, x in shapes.items()
    }
    shutil.rmtree(directory / "lora")
    weights.save(directory, "lora", values, {"config": manifest_configs.describe("lora", config)})


@pytest.mark.parametrize(
    ("rules", "named"),
    (((("qkv", 4, 1.0),), "'qkv' matches no adapter"), (((".*", 0, 1.0),), "must be positive, not 0")),
)
def test_wrong_rules(rules, named):
    with pytest.raises(ValueError, match=named):
        FluxConfig.tiny(lora_rules=rules)


def test_a_manifest_of_one_rank_is_what_it_was():
    config = FluxConfig.tiny()
    assert ADAPTERS["lora"].describe(config) == {"rank": 4, "scale": 1.0}
    ruled = dataclasses.replace(config, lora_rules=RULES)
    assert ADAPTERS["lora"].describe(ruled)["rules"] == RULES
    sections = json.loads(json.dumps({"lora": ADAPTERS["lora"].describe(ruled)}))
    assert manifest_configs.check_sections(sections, "x")["lora"]["rules"] == RULES
    with pytest.raises(InputError, match=r"lora\.rules must be of type list of \(regex, rank, factor\)"):
        manifest_configs.check_sections({"lora": {"rules": [["a", 1.5, 1]]}}, "x")
