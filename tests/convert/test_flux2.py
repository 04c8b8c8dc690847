# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""FLUX.2's files in and out: bit-exact, recognised by their tensors, and loaded by diffusers with the same outputs."""

import functools
import json
import pathlib
import shutil

import diffusers
import golden_flux2 as golden
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from comparison import error
from converted import TOLERANCE, config_file, equal, load
from oracle_flux2 import LAYERS, QWEN3, torch_qwen3
from qwen3_tokenizer import train_tokenizer
from safetensors.numpy import load_file, save_file

from convert.__main__ import main
from uso_jax import params, weights
from uso_jax.models.components import split_transformer
from uso_jax.models.families import family_of
from uso_jax.models.flux2 import Flux2, Flux2Config
from uso_jax.models.layers.lora import LoraRules
from uso_jax.models.qwen3 import Qwen3Encoder
from uso_jax.weights import manifest_configs
from uso_jax.weights.tables.flux import LORA
from uso_jax.weights.tables.table import to_torch

CONFIG = str(golden.DIR / "config.json")
COUNTER = "bn.num_batches_tracked"


def to(tmp_path: pathlib.Path, name: str) -> str:
    return str(tmp_path / name)


@pytest.mark.parametrize("name", ("klein", pytest.param("dev", marks=pytest.mark.slow)))
def test_transformer(name, tmp_path):
    source = golden.DIR / f"flux2_{name}_tiny.safetensors"
    main(["import", str(source), "--to", to(tmp_path, "w"), "--config", CONFIG])
    sections = weights.manifest(tmp_path / "w", "transformer")["config"]
    assert family_of(sections).name == "flux2" and sections["flux2"]["guidance_embed"] == (name == "dev")
    args = ["export", to(tmp_path, "w"), "--component", "transformer", "--format"]
    main([*args, "bfl", "--to", to(tmp_path, "b.safetensors")])
    equal(tmp_path / "b.safetensors", load_file(source))
    main([*args, "diffusers", "--to", to(tmp_path, "d")])
    theirs = diffusers.Flux2Transformer2DModel.from_pretrained(tmp_path / "d").eval()
    assert error(run(theirs), golden.arrays()[f"{name}_velocity_one_ref"]) < TOLERANCE

    theirs.save_pretrained(tmp_path / "s", max_shard_size="200KB")
    index = tmp_path / "s" / "diffusion_pytorch_model.safetensors.index.json"
    main(["import", str(index), "--to", to(tmp_path, "w2"), "--config", CONFIG])
    args[1] = to(tmp_path, "w2")
    main([*args, "bfl", "--to", to(tmp_path, "b2.safetensors")])
    equal(tmp_path / "b2.safetensors", load_file(source))


def run(model: diffusers.Flux2Transformer2DModel) -> np.ndarray:
    """Run diffusers' transformer on the golden case with one reference."""
    g, t = golden.arrays(), lambda x: torch.from_numpy(np.array(x))
    guided = model.config.guidance_embeds
    with torch.no_grad():
        out = model(
            hidden_states=t(np.concatenate([g["img_tokens"], g["ref_tokens_0"]], axis=1)),
            encoder_hidden_states=t(g["txt"]),
            timestep=torch.tensor(golden.CONFIG["sampling"]["t"]),
            img_ids=t(np.concatenate([g["img_ids"][0], g["ref_ids_0"][0]])),
            txt_ids=t(g["txt_ids"][0]),
            guidance=torch.full((2,), golden.CONFIG["sampling"]["guidance"]) if guided else None,
        )
    return out.sample[:, : g["img_tokens"].shape[1]].numpy()


@pytest.mark.slow
@pytest.mark.skipif(not golden.HAS_AUTOENCODER, reason="this golden directory has no autoencoder")
def test_autoencoder(tmp_path):
    source = golden.DIR / "flux2_ae_tiny.safetensors"
    main(["import", str(source), "--to", to(tmp_path, "w")])
    args = ["export", to(tmp_path, "w"), "--component", "autoencoder", "--format"]
    main([*args, "bfl", "--to", to(tmp_path, "b.safetensors")])
    equal(tmp_path / "b.safetensors", golden.tensors("ae"))
    main([*args, "diffusers", "--to", to(tmp_path, "d")])
    theirs = diffusers.AutoencoderKLFlux2.from_pretrained(tmp_path / "d").eval()
    moments = theirs.encode(torch.from_numpy(golden.arrays()["ae_image"])).latent_dist.parameters
    assert error(moments.detach().numpy(), golden.arrays()["ae_moments"]) < TOLERANCE

    theirs.save_pretrained(tmp_path / "s")
    main(["import", to(tmp_path, "s/diffusion_pytorch_model.safetensors"), "--to", to(tmp_path, "w2")])
    args[1] = to(tmp_path, "w2")
    main([*args, "bfl", "--to", to(tmp_path, "b2.safetensors")])
    equal(tmp_path / "b2.safetensors", golden.tensors("ae"))


def test_text_encoder(tmp_path, capsys):
    """Import a checkpoint with more layers than are read, in shards, with its tokenizer and template."""
    torch_qwen3().save_pretrained(tmp_path / "text_encoder", max_shard_size="20KB")
    train_tokenizer(tmp_path / "tokenizer", "right")
    index = tmp_path / "text_encoder" / "model.safetensors.index.json"
    config = config_file(tmp_path, {"qwen3": {"num_hidden_layers": LAYERS, "hidden_states": list(QWEN3.hidden_states)}})
    main(["import", str(index), "--to", to(tmp_path, "w"), "--config", config])
    assert "tokenizer_qwen3" in capsys.readouterr().out
    ours = load(tmp_path / "w", "qwen3", Qwen3Encoder, dtype="float32", remat="none")
    ids = np.random.default_rng(0).integers(0, QWEN3.vocab_size, (1, 9)).astype(np.int32)
    with torch.no_grad():
        states = torch_qwen3()(torch.tensor(ids).long(), output_hidden_states=True).hidden_states
    want = torch.cat([states[i] for i in QWEN3.hidden_states], dim=-1).numpy()
    assert error(ours(jnp.asarray(ids), jnp.ones_like(ids, bool)), want) < TOLERANCE


@pytest.mark.skipif(not golden.HAS_AUTOENCODER, reason="this golden directory has no autoencoder")
@pytest.mark.parametrize("size", ("4b", "8b"))
def test_a_full_checkpoint_of_comfyui_in_float8(size, tmp_path):
    """Import one file that holds transformer, autoencoder and text encoder; the transformer's kernels have scales."""
    transformer, want = {}, {}
    for key, value in golden.tensors("klein").items():
        if key.endswith(".weight") and "blocks" in key:
            scale = np.abs(value).max() / 448
            transformer[key] = (value / scale).astype(ml_dtypes.float8_e4m3fn)
            transformer[f"{key}_scale"] = np.asarray(scale, np.float32)
            transformer[key.replace(".weight", ".input_scale")] = np.ones((), np.float32)
            want[key] = (transformer[key].astype(np.float32) * np.float32(scale)).astype(ml_dtypes.bfloat16)
        else:
            transformer[key], want[key] = value, value
    encoder = f"text_encoders.qwen3_{size}"
    tensors = {f"model.diffusion_model.{key}": value for key, value in transformer.items()}
    tensors |= {f"vae.{key}": value for key, value in golden.tensors("ae").items()}
    tensors |= {f"{encoder}.transformer.{key}": x.numpy() for key, x in torch_qwen3().state_dict().items()}
    tensors[f"{encoder}.logit_scale"] = np.ones((), np.float32)
    save_file(tensors, tmp_path / "x")
    sections = json.loads((golden.DIR / "config.json").read_text())
    sections["qwen3"] = {"num_hidden_layers": LAYERS, "hidden_states": list(QWEN3.hidden_states)}
    main(["import", to(tmp_path, "x"), "--to", to(tmp_path, "w"), "--config", config_file(tmp_path, sections)])
    assert weights.components(tmp_path / "w") == ["autoencoder", "qwen3", "transformer"]
    want = {key: value.astype(np.float32) for key, value in want.items()}
    for component, parts in (("transformer", want), ("autoencoder", golden.tensors("ae"))):
        args = ["--component", component, "--format", "bfl", "--dtype", "fp32"]
        main(["export", to(tmp_path, "w"), *args, "--to", to(tmp_path, f"{component}.safetensors")])
        equal(tmp_path / f"{component}.safetensors", parts)
    ours, theirs = weights.read(tmp_path / "w", "qwen3"), torch_qwen3().state_dict()
    np.testing.assert_array_equal(ours["embed_tokens/embedding"], theirs["model.embed_tokens.weight"])


def test_released_text_encoders_keep_the_layers_that_are_read(tmp_path, capsys):
    manifest = golden.MANIFESTS["qwen3-4b (transformers names)"]
    tiny = {151936: 16, 2560: 8, 9728: 12, 4096: 8, 1024: 4, 128: 2}
    rng = np.random.default_rng(0)
    tensors = {key: rng.standard_normal([tiny[size] for size in shape]) for key, shape in manifest.items()}
    save_file({key: value.astype(np.float16) for key, value in tensors.items()}, tmp_path / "in.safetensors")
    main(["import", to(tmp_path, "in.safetensors"), "--to", to(tmp_path, "w")])
    config = weights.config(tmp_path / "w", "qwen3")
    assert (config.num_hidden_layers, config.hidden_states) == (27, (9, 18, 27))
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 2)


# ---------------------------------------------------------------------------------------------------- adapters


RULES = ((r".*/qkv_lora.*", 6, 0.5), ("double_blocks/processor/proj_lora2", 2, 1.0))


def drawn_adapters(rules: LoraRules = ()) -> tuple[Flux2Config, dict, dict[str, np.ndarray]]:
    """Return a config with adapters for the golden transformer, their shapes, and every number drawn anew."""
    config = golden.config("klein", lora_rank=4, lora_rules=rules)
    shapes = split_transformer(params.shapes(lambda rngs: Flux2(config, rngs=rngs)))["lora"]
    rng = np.random.default_rng(2)
    values = {
        path: (0.8 * x.shape[-2] ** -0.5 * rng.standard_normal(x.shape)).astype(np.float32)
        for path, x in shapes.items()
    }
    return config, shapes, values


@functools.cache
def adapters(rules: LoraRules = ()) -> dict[str, np.ndarray]:
    """Adapters for the golden transformer in USO's layout, their factors multiplied into `up`."""
    config, shapes, values = drawn_adapters(rules)
    for path, one in config.adapters.items():
        values[f"{path}/up/kernel"] = values[f"{path}/up/kernel"] * np.float32(one.scale)
    return dict(to_torch(LORA, shapes, values))


MODULES = {
    "qkv_lora1": "img_attn.qkv", "proj_lora1": "img_attn.proj", "qkv_lora2": "txt_attn.qkv",
    "proj_lora2": "txt_attn.proj", "qkv_lora": "linear1", "proj_lora": "linear2",
}  # fmt: skip


def in_original_names(prefix: str, end: str, joint: str = ".") -> dict[str, np.ndarray]:
    """Return the adapters as trainers write them for ComfyUI or kohya's programs, whole `linear1` included."""
    found = {}
    for key, value in adapters().items():
        block, module, half, _ = key.replace(".processor", "").rsplit(".", 3)
        if module == "qkv_lora" and half == "up":
            value = np.concatenate([value, np.zeros((2 * value.shape[0], value.shape[1]), np.float32)])
        name = f"{block}.{MODULES[module]}".replace(".", joint)
        found[f"{prefix}{name}.{end.format({'down': 'A', 'up': 'B'}[half], half)}.weight"] = value
    return found


@pytest.fixture
def directory(tmp_path) -> pathlib.Path:
    """A weights directory with the golden transformer and the adapters."""
    save_file(adapters(), tmp_path / "lora.safetensors")
    main(["import", str(golden.DIR / "flux2_klein_tiny.safetensors"), "--to", to(tmp_path, "w"), "--config", CONFIG])
    main(["import", to(tmp_path, "lora.safetensors"), "--to", to(tmp_path, "w"), "--config", CONFIG])
    return tmp_path / "w"


@pytest.mark.slow
@pytest.mark.parametrize("rules", ((), RULES), ids=("one rank", "by rule"))
def test_adapters_in_diffusers(rules, directory, tmp_path):
    if rules:
        config, _, values = drawn_adapters(rules)
        shutil.rmtree(directory / "lora")
        weights.save(directory, "lora", values, {"config": manifest_configs.describe("lora", config)})
    adapted = load(directory, "transformer", Flux2, dtype="float32", remat="none")
    ours = jax.jit(lambda: golden.velocity(adapted, **golden.references(1)))()
    assert error(ours, golden.arrays()["klein_velocity_one_ref"]) > 0.1
    main(["export", str(directory), "--format", "diffusers", "--to", to(tmp_path, "d")])
    whole = ["export", str(directory), "--format", "diffusers", "--component"]
    main([*whole, "transformer", "--to", to(tmp_path, "base")])
    theirs = diffusers.Flux2Transformer2DModel.from_pretrained(tmp_path / "base").eval()
    theirs.load_lora_adapter(to(tmp_path, "d/pytorch_lora_weights.safetensors"), prefix="transformer")
    assert error(run(theirs), ours) < TOLERANCE
    # ... and with the pipeline's own loader, from every layout.
    for layout in ("diffusers", "peft", "comfy", "kohya"):
        main(["export", str(directory), "--format", layout, "--to", to(tmp_path, layout)])
        (file,) = (tmp_path / layout).glob("*.safetensors")
        model = diffusers.Flux2Transformer2DModel.from_pretrained(tmp_path / "base").eval()
        parts = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer"))
        diffusers.Flux2KleinPipeline(transformer=model, **parts).load_lora_weights(str(file))
        assert error(run(model), ours) < TOLERANCE, layout
    main([*whole, "merged", "--to", to(tmp_path, "m")])
    assert error(run(diffusers.Flux2Transformer2DModel.from_pretrained(tmp_path / "m").eval()), ours) < TOLERANCE
    # ... and back, by their names
    main(["import", to(tmp_path, "d/pytorch_lora_weights.safetensors"), "--to", to(tmp_path, "w2"), "--config", CONFIG])
    main(["export", to(tmp_path, "w2"), "--format", "uso", "--to", to(tmp_path, "back.safetensors")])
    equal(tmp_path / "back.safetensors", adapters(rules))


@pytest.mark.parametrize(
    ("layout", "names"),
    (("comfy", ("diffusion_model.", "lora_{0}")), ("kohya", ("lora_unet_", "lora_{1}", "_"))),
    ids=("comfy", "kohya"),
)
def test_adapters_of_trainers(layout, names, tmp_path):
    save_file(in_original_names(*names), tmp_path / "in.safetensors")
    main(["import", to(tmp_path, "in.safetensors"), "--to", to(tmp_path, "w"), "--config", CONFIG])
    assert "flux2" in weights.manifest(tmp_path / "w", "lora")["config"]
    main(["export", to(tmp_path, "w"), "--format", "uso", "--to", to(tmp_path, "o.safetensors")])
    equal(tmp_path / "o.safetensors", adapters())
    main(["export", to(tmp_path, "w"), "--format", layout, "--to", to(tmp_path, "e")])
    (file,) = (tmp_path / "e").glob("*.safetensors")
    written = {key: value for key, value in load_file(file).items() if not key.endswith(".alpha")}
    assert written.keys() == in_original_names(*names).keys()
    for key, value in in_original_names(*names).items():
        np.testing.assert_array_equal(written[key], value)


def test_released_widths_need_no_config(tmp_path):
    """Adapters of the released width belong to klein-4B if their MLPs are its, without a --config."""
    rank, width = 1, 3072
    one = {
        "single_blocks.0.linear2.lora_A.weight": np.ones((rank, 4 * width), np.float16),
        "single_blocks.0.linear2.lora_B.weight": np.ones((width, rank), np.float16),
    }
    save_file({f"diffusion_model.{key}": value for key, value in one.items()}, tmp_path / "in.safetensors")
    main(["import", to(tmp_path, "in.safetensors"), "--to", to(tmp_path, "w")])
    sections = json.loads((tmp_path / "w" / "lora" / "manifest.json").read_text())["config"]
    assert sections["flux2"] == {"hidden_size": 3072, "mlp_ratio": 3.0, "depth": 5, "depth_single_blocks": 20}
