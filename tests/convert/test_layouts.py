# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Every layout in and out, against the programs that write it: diffusers, transformers, torch, ComfyUI."""

import argparse
import functools
import json
import subprocess
import sys

import diffusers
import golden_files as golden
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from comparison import error
from converted import TOLERANCE, config_file, equal, load, redraw, run_flux, run_torch_flux, state, torch_flux
from safetensors.numpy import load_file, save_file

from convert import layouts
from convert.__main__ import main
from uso_jax import weights
from uso_jax.models.autoencoder import AutoEncoder
from uso_jax.models.flux import Flux
from uso_jax.weights.tables.table import expand

pytestmark = pytest.mark.usefixtures("cheap_compilation")

# ---------------------------------------------------------------------------------------------------- diffusers


def test_diffusers_transformer(tmp_path, capsys):
    torch_flux().save_pretrained(tmp_path / "d", max_shard_size="100KB")
    index = tmp_path / "d" / "diffusion_pytorch_model.safetensors.index.json"
    config = config_file(tmp_path, {"flux": {"axes_dim": [4, 6, 6]}})
    main(["inspect", str(index), "--config", config])
    out = capsys.readouterr().out
    assert "flux-diffusers" in out and "guidance-distilled" in out and "nothing missing" in out
    main(["import", str(index), "--to", str(tmp_path / "w"), "--config", config])
    model = load(tmp_path / "w", "transformer", Flux, dtype="float32", remat="none")
    assert error(run_flux(model), run_torch_flux(torch_flux())) < TOLERANCE
    # ... and out again, whole, into a folder that diffusers loads.
    main(
        [
            "export",
            str(tmp_path / "w"),
            "--format",
            "diffusers",
            "--component",
            "transformer",
            "--to",
            str(tmp_path / "o"),
        ]
    )
    equal(tmp_path / "o" / "diffusion_pytorch_model.safetensors", state(torch_flux()))
    again = diffusers.FluxTransformer2DModel.from_pretrained(tmp_path / "o")
    assert error(run_torch_flux(again), run_torch_flux(torch_flux())) < 1e-5  # rounding follows how memory is aligned


def test_both_layouts_of_the_transformer_are_one_component(tmp_path):
    main(["import", golden_path("flux"), "--to", str(tmp_path / "w"), "--config", str(golden.DIR / "config.json")])
    main(
        [
            "export",
            str(tmp_path / "w"),
            "--component",
            "transformer",
            "--format",
            "diffusers",
            "--to",
            str(tmp_path / "d"),
        ]
    )
    diffusers_file = str(tmp_path / "d" / "diffusion_pytorch_model.safetensors")
    main(["import", diffusers_file, "--to", str(tmp_path / "w2"), "--config", str(golden.DIR / "config.json")])
    main(["export", str(tmp_path / "w2"), "--format", "bfl", "--to", str(tmp_path / "b.safetensors")])
    equal(tmp_path / "b.safetensors", golden.tensors("flux"))


def golden_path(name: str) -> str:
    return str(golden.DIR / f"{name}_tiny.safetensors")


def torch_autoencoder():
    return redraw(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            layers_per_block=1,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=0.5,
            shift_factor=0.1,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    )


def test_diffusers_autoencoder(tmp_path):
    torch_model = torch_autoencoder()
    torch_model.save_pretrained(tmp_path / "d")
    config = config_file(tmp_path, {"autoencoder": {"norm_groups": 4, "scale_factor": 0.5, "shift_factor": 0.1}})
    file = tmp_path / "d" / "diffusion_pytorch_model.safetensors"
    main(["import", str(file), "--to", str(tmp_path / "w"), "--config", config])
    model = load(tmp_path / "w", "autoencoder", AutoEncoder)
    image = np.random.default_rng(0).uniform(-1, 1, (1, 8, 16, 3)).astype(np.float32)
    pixels = jnp.asarray(image)
    with torch.no_grad():
        latent = torch_model.encode(torch.tensor(image).permute(0, 3, 1, 2)).latent_dist.mean
        want = torch_model.decode(latent).sample.permute(0, 2, 3, 1)
    assert error(model.encode(pixels), 0.5 * (latent.permute(0, 2, 3, 1).numpy() - 0.1)) < TOLERANCE
    assert error(model.decode(model.encode(pixels)), want) < TOLERANCE
    args = ["export", str(tmp_path / "w"), "--component", "autoencoder", "--format"]
    main([*args, "diffusers", "--to", str(tmp_path / "o")])
    equal(tmp_path / "o" / file.name, load_file(file))
    assert diffusers.AutoencoderKL.from_pretrained(tmp_path / "o").config.scaling_factor == 0.5
    main([*args, "bfl", "--to", str(tmp_path / "b.safetensors")])
    main(["import", str(tmp_path / "b.safetensors"), "--to", str(tmp_path / "w2"), "--config", config])
    again = load(tmp_path / "w2", "autoencoder", AutoEncoder)
    np.testing.assert_array_equal(again.encode(pixels), model.encode(pixels))


# ---------------------------------------------------------------------------------------------------- manifests


def on_meta(make) -> dict[str, list[int]]:
    with torch.device("meta"):
        return {key: list(value.shape) for key, value in make().state_dict().items()}


def diffusers_manifests() -> dict[str, tuple[str, dict]]:
    vae = dict(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=2,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    return {
        "dev": ("flux-diffusers", on_meta(lambda: diffusers.FluxTransformer2DModel(guidance_embeds=True))),
        "schnell": ("flux-diffusers", on_meta(lambda: diffusers.FluxTransformer2DModel(guidance_embeds=False))),
        "vae": ("flux-ae-diffusers", on_meta(lambda: diffusers.AutoencoderKL(**vae))),
    }


@pytest.mark.parametrize("name", ("dev", "schnell", "vae"))
def test_diffusers_manifests_are_consumed_exactly_once(name):
    family, manifest = diffusers_manifests()[name]
    consumed_once(family, manifest)


RELEASED = {
    "flux1-dev.safetensors": "flux",
    "uso_flux_v1.0/dit_lora.safetensors": "uso-lora",
    "uso_flux_v1.0/projector.safetensors": "uso-projector",
    "ae.safetensors": "flux-ae",
    "siglip-so400m-patch14-384/model.safetensors (vision tower only)": "siglip",
    "t5-v1_1-xxl/pytorch_model.bin (encoder only)": "t5",
    "clip-vit-large-patch14/model.safetensors (text tower only)": "clip-text",
}


@pytest.mark.parametrize("name", golden.MANIFESTS)
def test_released_manifests_are_consumed_exactly_once(name):
    consumed_once(RELEASED[name], {key: shape for key, (shape, _) in golden.MANIFESTS[name].items()})


def consumed_once(name: str, manifest: dict):
    ((family, prefix, keys),) = layouts.detect(manifest)
    assert family.name == name and sorted(keys) == sorted(manifest)
    shapes = {key.removeprefix(prefix): tuple(shape) for key, shape in manifest.items()}
    sections = {part: {n: size(shapes) for n, size in fields.items()} for part, fields in family.sizes.items()}
    assert not [n for fields in sections.values() for n, value in fields.items() if value is None]
    _, targets = layouts.build_model(family.component, sections)
    entries = expand(family.rows, targets)
    aliases = set(family.aliases)
    assert {key: entry.shape for key, entry in entries.items()} == {k: v for k, v in shapes.items() if k not in aliases}
    # Every row of every parameter is filled, once.
    filled = {path: 0 for path in targets}
    for entry in entries.values():
        for piece in entry.pieces:
            assert piece.start < piece.stop
            filled[piece.path] += int(np.prod(entry.shape[1:])) * (piece.stop - piece.start)
    assert filled == {path: int(np.prod(struct.shape)) for path, struct in targets.items()}


# ---------------------------------------------------------------------------------------------------- float8, ComfyUI


def test_plain_float8(tmp_path, capsys):
    tensors = {key: value.astype(ml_dtypes.float8_e4m3fn) for key, value in golden.tensors("flux").items()}
    save_file({f"model.diffusion_model.{key}": value for key, value in tensors.items()}, tmp_path / "x")
    args = [str(tmp_path / "x"), "--config", str(golden.DIR / "config.json")]
    main(["inspect", *args])
    assert f"{len(tensors)} float8 tensors" in capsys.readouterr().out
    main(["import", *args, "--to", str(tmp_path / "w")])
    assert weights.manifest(tmp_path / "w", "transformer")["dtype"] == "bfloat16"
    main(["export", str(tmp_path / "w"), "--format", "bfl", "--to", str(tmp_path / "o.safetensors")])
    equal(tmp_path / "o.safetensors", {key: value.astype(ml_dtypes.bfloat16) for key, value in tensors.items()})


@pytest.mark.parametrize("names", (("scale_weight", "scale_input"), ("weight_scale", "input_scale")))
@pytest.mark.parametrize("dtype", ("keep", "fp32"))
def test_scaled_float8(names, dtype, tmp_path):
    tensors, want = {"scaled_fp8": np.zeros(2, ml_dtypes.float8_e4m3fn)}, {}
    rng = np.random.default_rng(0)
    for key, value in golden.tensors("flux").items():
        if key.endswith(".weight") and "blocks" in key:
            by_row = names[0] == "weight_scale" and "img_mlp" in key
            scale = rng.uniform(0.1, 3, (len(value), 1) if by_row else ()).astype(np.float32)
            small = (value / scale).astype(ml_dtypes.float8_e4m3fn)
            stem = key.removesuffix("weight")
            tensors |= {key: small, stem + names[0]: scale, stem + names[1]: np.ones((), np.float32)}
            want[key] = small.astype(np.float32) * scale
        else:
            tensors[key], want[key] = value, value
    save_file(tensors, tmp_path / "x")
    config = ["--config", str(golden.DIR / "config.json")]
    main(["import", str(tmp_path / "x"), "--to", str(tmp_path / "w"), "--dtype", dtype, *config])
    main(["export", str(tmp_path / "w"), "--format", "bfl", "--to", str(tmp_path / "o.safetensors"), "--dtype", "fp32"])
    got = load_file(tmp_path / "o.safetensors")
    assert got.keys() == want.keys()
    for key, value in want.items():
        rounded = value.astype(ml_dtypes.bfloat16) if dtype == "keep" and key in tensors and "blocks" in key else value
        rounded = value if value is tensors.get(key) else rounded
        np.testing.assert_array_equal(got[key], rounded.astype(np.float32))


def test_a_full_checkpoint_of_comfyui_is_several_components(tmp_path):
    t5, clip = torch_t5(), torch_clip()
    tensors = {f"model.diffusion_model.{key}": value for key, value in golden.tensors("flux").items()}
    tensors |= {f"vae.{key}": value for key, value in golden.tensors("ae").items()}
    tensors |= {f"text_encoders.t5xxl.transformer.{key}": value for key, value in state(t5).items()}
    tensors |= {
        f"text_encoders.clip_l.transformer.text_model.{k.removeprefix('text_model.')}": v
        for k, v in clip_state().items()
    }
    tensors |= {f"text_encoders.{name}.logit_scale": np.ones((), np.float32) for name in ("t5xxl", "clip_l")}
    save_file(tensors, tmp_path / "x")
    sections = json.loads((golden.DIR / "config.json").read_text()) | {"clip": CLIP_CONFIG}
    main(["import", str(tmp_path / "x"), "--to", str(tmp_path / "w"), "--config", config_file(tmp_path, sections)])
    assert weights.components(tmp_path / "w") == ["autoencoder", "clip", "t5", "transformer"]
    assert clip is not None


# ---------------------------------------------------------------------------------------------------- text encoders

CLIP_CONFIG = {"num_attention_heads": 2, "eos_token_id": 63}


@functools.cache
def torch_t5():
    sizes = dict(
        vocab_size=64, d_model=20, d_kv=8, d_ff=40, num_layers=2, num_heads=4, relative_attention_num_buckets=8
    )
    return redraw(transformers.T5EncoderModel(transformers.T5Config(**sizes, feed_forward_proj="gated-gelu")))


@functools.cache
def torch_clip():
    sizes = dict(
        vocab_size=64, hidden_size=12, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, eos_token_id=63, bos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    return redraw(transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes)))


def clip_state() -> dict[str, np.ndarray]:
    """The keys that are in files, which have `text_model.` even where the class in memory has not."""
    return {f"text_model.{key.removeprefix('text_model.')}": value for key, value in state(torch_clip()).items()}


@pytest.mark.parametrize("form", ("one", "two", "bin", "legacy"))
def test_t5(form, tmp_path):
    tensors = state(torch_t5())
    files = [tmp_path / "x"]
    if form == "one":
        save_file({**tensors, "encoder.embed_tokens.weight": tensors["shared.weight"]}, files[0])
    elif form == "two":
        keys = sorted(tensors)
        files = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
        for file, part in zip(files, (keys[:7], keys[7:]), strict=True):
            save_file({key: tensors[key] for key in part}, file)
    else:
        decoder = {"decoder.final_layer_norm.weight": torch.ones(20), "lm_head.weight": torch.ones(64, 20)}
        torch.save(torch_t5().state_dict() | decoder, files[0], _use_new_zipfile_serialization=form == "bin")
    main(["import", *map(str, files), "--to", str(tmp_path / "w")])
    record = weights.manifest(tmp_path / "w", "t5")
    assert record["config"]["t5"]["d_kv"] == 8 and record["config"]["t5"]["relative_attention_num_buckets"] == 8
    main(["export", str(tmp_path / "w"), "--component", "t5", "--to", str(tmp_path / "o.safetensors")])
    equal(tmp_path / "o.safetensors", {k: v for k, v in tensors.items() if k != "encoder.embed_tokens.weight"})


@pytest.mark.parametrize("whole", (False, True))
def test_clip(whole, tmp_path, capsys):
    tensors = clip_state()
    others = {
        "text_model.embeddings.position_ids": np.arange(16)[None], "logit_scale": np.ones((), "f4"),
        "text_projection.weight": np.ones((8, 12), "f4"), "visual_projection.weight": np.ones((8, 12), "f4"),
        "vision_model.embeddings.class_embedding": np.ones(12, "f4"),
        "vision_model.encoder.layers.0.layer_norm1.weight": np.ones(12, "f4"),
    }  # fmt: skip
    save_file(tensors | (others if whole else {}), tmp_path / "x")
    args = [str(tmp_path / "x"), "--config", config_file(tmp_path, {"clip": CLIP_CONFIG})]
    main(["inspect", *args])
    assert ("6 tensors of other networks" in capsys.readouterr().out) == whole
    main(["import", *args, "--to", str(tmp_path / "w")])
    main(["export", str(tmp_path / "w"), "--component", "clip", "--to", str(tmp_path / "o.safetensors")])
    equal(tmp_path / "o.safetensors", tensors)


# ---------------------------------------------------------------------------------------------------- pickles


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('the pickle ran')",)


@pytest.mark.parametrize("zipped", (True, False))
def test_a_pickle_that_runs_code_does_not_run(zipped, tmp_path, capsys):
    torch.save({"shared.weight": torch.ones(3), "x": Evil()}, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(SystemExit) as caught:
        main(["import", str(tmp_path / "x.bin"), "--to", str(tmp_path / "w")])
    assert caught.value.code == 2
    assert "could run code" in capsys.readouterr().err and not (tmp_path / "w").exists()


def test_a_training_pickle_with_its_command_line(tmp_path):
    keys = {
        "cls_token": (1, 1, 64), "pos_embed": (1, 5, 64), "patch_embed.proj.weight": (64, 3, 8, 8),
        "patch_embed.proj.bias": (64,), "norm.weight": (64,), "norm.bias": (64,),
    }  # fmt: skip
    for i in range(2):
        for name, size in (("norm1", 64), ("norm2", 64)):
            keys |= {f"blocks.{i}.{name}.weight": (size,), f"blocks.{i}.{name}.bias": (size,)}
        for name, (o, n) in {
            "attn.qkv": (192, 64),
            "attn.proj": (64, 64),
            "mlp.fc1": (96, 64),
            "mlp.fc2": (64, 96),
        }.items():
            keys |= {f"blocks.{i}.{name}.weight": (o, n), f"blocks.{i}.{name}.bias": (o,)}
    tensors = {key: torch.randn(shape).to(torch.bfloat16) for key, shape in keys.items()}
    training = {"model_state_dict": tensors, "iter": 3, "args": argparse.Namespace(lr=0.1, name="x")}
    torch.save(training, tmp_path / "x.pth")
    main(["import", str(tmp_path / "x.pth"), "--to", str(tmp_path / "w")])
    assert weights.config(tmp_path / "w", "dino").image_size == 16
    main(["export", str(tmp_path / "w"), "--component", "dino", "--to", str(tmp_path / "o.safetensors")])
    want = {key: value.view(torch.int16).numpy().view(ml_dtypes.bfloat16) for key, value in tensors.items()}
    equal(tmp_path / "o.safetensors", want)


def test_a_tensor_that_repeats_one_number_without_end(tmp_path, capsys):
    torch.save({"shared.weight": torch.ones(1).expand(2**40, 2**20)}, tmp_path / "x.bin")
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "x.bin")])
    assert "more numbers than are stored" in capsys.readouterr().err


def test_without_torch(tmp_path):
    torch.save({"shared.weight": torch.ones(3)}, tmp_path / "x.bin")
    code = "import sys; sys.modules['torch'] = None; from convert.__main__ import main; main(['inspect', sys.argv[1]])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.bin")], capture_output=True, text=True)
    assert done.returncode == 2 and "which only torch can read" in done.stderr and "Traceback" not in done.stderr


def test_csd(tmp_path):
    config = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
    config |= {"image_size": 16, "patch_size": 8, "projection_dim": 10}
    _, shapes = layouts.build_model("csd", {"csd": config})
    rng = np.random.default_rng(0)
    entries = expand(layouts.family_by_name("csd").rows, shapes)
    tensors = {f"module.{key}": rng.normal(size=entry.shape).astype(np.float16) for key, entry in entries.items()}
    save_file(tensors, tmp_path / "x")
    main(["import", str(tmp_path / "x"), "--to", str(tmp_path / "w")])
    found = weights.manifest(tmp_path / "w", "csd")["config"]["csd"]
    assert {name: found[name] for name in config} == config
    main(["export", str(tmp_path / "w"), "--component", "csd", "--to", str(tmp_path / "o.safetensors")])
    equal(tmp_path / "o.safetensors", tensors)
    assert jax.devices()


def test_both_towers_of_clip_are_read_when_asked_for(tmp_path, capsys):
    sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1)
    text = dict(vocab_size=70, max_position_embeddings=16, eos_token_id=63, bos_token_id=0, pad_token_id=1, **sizes)
    vision = dict(image_size=16, patch_size=8, **sizes)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=10)
    model = redraw(transformers.CLIPModel(config))
    model.save_pretrained(tmp_path / "c")
    file = tmp_path / "c" / "model.safetensors"
    tensors = load_file(file)
    told = {"num_attention_heads": 1, "eos_token_id": 63}
    args = ["--config", config_file(tmp_path, {"clip": told, "clip_text": told})]
    main(["import", str(file), "--to", str(tmp_path / "w"), *args])
    assert weights.components(tmp_path / "w") == ["clip"]
    main(["import", str(file), "--to", str(tmp_path / "w"), "--component", "clip_model", *args])
    assert weights.components(tmp_path / "w") == ["clip", "clip_model"]
    found = weights.config(tmp_path / "w", "clip_model")
    assert found.vision.patch_size == 8 and found.text.projection_dim == 10 and found.vision.image_size == 16
    main(["export", str(tmp_path / "w"), "--component", "clip_model", "--to", str(tmp_path / "o.safetensors")])
    equal(tmp_path / "o.safetensors", tensors)
    with pytest.raises(SystemExit):
        main(["import", str(file), "--to", str(tmp_path / "w2"), "--component", "transformer"])
    assert "the files hold clip, not transformer" in capsys.readouterr().err
