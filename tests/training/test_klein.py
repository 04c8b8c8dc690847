# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""FLUX.2's recipes from the first step to an image: stopping and resuming, rewards, adapters in a weights directory."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from comparison import assert_same
from PIL import Image
from safetensors.numpy import load_file
from training_runs import EVENT_LOOP_IS_CLOSED, interrupt, metrics, watched

from convert.__main__ import main
from uso_jax import weights
from uso_jax.common.errors import InputError
from uso_jax.curation import steps
from uso_jax.curation.config import CurationConfig, ExpertConfig
from uso_jax.data.loader import batches
from uso_jax.data.sources import open_source
from uso_jax.evaluation.generation import generate_images
from uso_jax.evaluation.items import EvalItem
from uso_jax.inference.options import GenerationOptions
from uso_jax.inference.pipeline import USOPipeline
from uso_jax.models.clip import ClipConfig, ClipVisionConfig
from uso_jax.models.components import by_component
from uso_jax.models.uso import USO
from uso_jax.training import precompute, preflight, rewards
from uso_jax.training.fit import fit
from uso_jax.training.validation import pipeline_options
from uso_jax.weights import manifest_configs

pytestmark = [pytest.mark.slow, EVENT_LOOP_IS_CLOSED]  # compiles or runs whole programs
CSD = ClipVisionConfig(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
    projection_dim=8, dtype="float32", remat="none",
)  # fmt: skip
REWARD = dict(weights=dict(csd_style=1.0), start=1, num_steps=3, last=2, scale=1.0, judges=())
SETTINGS = dict(qwen3_length=40, width=16, height=16, content_ref=16, num_steps=2, guidance=3.0)


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A weights directory of random numbers, with a tokenizer and a network that rewards."""
    folder = tmp_path_factory.mktemp("base")
    config = tiny.klein("klein", folder, "disentanglement", changes={"model.csd": CSD}, reward=REWARD)
    shapes, rng = USO(config.system).shapes, np.random.default_rng(0)

    def drawn(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if path.endswith(("/scale", "/var")):
            return np.ones(shape, np.float32)
        inputs = np.prod(shape[:-1] if len(shape) == 4 else shape[-2:-1])  # of a convolution, or of a linear layer
        return (max(inputs, 4) ** -0.5 * rng.standard_normal(shape)).astype(np.float32)

    for component, paths in by_component(shapes).items():
        if component not in ("lora", "projector"):
            sizes = manifest_configs.describe(component, config.system.network(component))
            params = {inner: drawn(path, shapes[path].shape) for inner, path in paths.items()}
            weights.save(folder, component, params, {"config": sizes})
    (folder / "pipeline.json").write_text(json.dumps(SETTINGS))
    return folder


def config(variant, base, *run, changes=None, **stage):
    changes = {"model.weights": str(base), "checkpoint.every": 2, "model.csd": CSD} | (changes or {})
    return tiny.klein(variant, base, *run, changes=changes, **({"learning_rate": 0.05} | stage))


def image(base, trained, *, projector: bool) -> np.ndarray:
    """Draw with the base and what was trained on it."""
    folder = trained.parent / "together"
    for source in (base, trained):
        shutil.copytree(source, folder, dirs_exist_ok=True)
    pipe = USOPipeline.from_weights(folder, compilation_cache=False)
    assert pipe.system.family.name == "flux2"
    references = [np.full((16, 16, 3), shade, np.uint8) for shade in (20, 200)]
    chosen = dict(content=references[0], styles=references[1:]) if projector else dict(contents=references)
    return np.asarray(pipe("a red fox", **chosen, seed=1).images[0], int)


def first_batch(run):
    (stage,) = run.run_stages
    stream = batches(open_source(run.data.train, stage.data), batch_size=8, seed=0, **pipeline_options(run, stage))
    return {name: jnp.asarray(x) for name, x in next(iter(stream)).items()}


def test_stopped_and_resumed(base, tmp_path):
    run = lambda: config("klein_joint", base, steps=3)
    with watched() as straight:
        (stage,) = fit(run(), tmp_path / "straight")["stages"]
    assert 0 < stage["heldout_loss_after"] != stage["heldout_loss_before"] > 0
    with watched(interrupt(3)) as watch, pytest.raises(KeyboardInterrupt):
        fit(run(), tmp_path / "stopped")
    assert max(watch.saved) == 2
    with watched() as watch:
        fit(run(), tmp_path / "stopped")
    assert_same(watch.saved[3], straight.saved[3])
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "straight")

    main(["pack", str(tmp_path / "straight"), "--to", str(tmp_path / "trained"), "--dtype", "fp32"])
    assert set(weights.components(tmp_path / "trained")) == {"lora", "projector"}
    lora = dict(weights.read(tmp_path / "trained", "lora"))
    assert any(np.abs(np.asarray(x)).max() > 1e-3 for path, x in lora.items() if path.endswith("up/kernel"))
    assert image(base, tmp_path / "trained", projector=True).std() > 0


def test_adapters_on_references_alone(base, tmp_path):
    """Train isolated references with a reward on features, which hold what the reward reads of the references."""
    ranks = {"model.transformer.lora_rules": ((r".*/qkv_lora.*", 6, 0.5),)}
    stage = dict(steps=2, reward=REWARD, isolated="content")
    raw = config("klein_lora", base, changes=ranks, **stage)
    assert raw.system.siglip is None and raw.system.transformer.projector is None
    for split in ("train", "heldout"):
        precompute.precompute(raw, *raw.run_stages, split, tmp_path / split, rewarded=True, shard_size=64)
    paths = {f"data.features.{split}.path": str(tmp_path / split) for split in ("train", "heldout")}
    features = {"data.source": "features"} | paths
    ready = config("klein_lora", base, changes=features | ranks, **stage)
    images, encoded = (first_batch(run) for run in (raw, ready))
    assert encoded["style_moments"].shape == (8, 1, 8, 8, 8) and "vec" not in encoded
    system = USO(raw.system)
    csd = {f"csd/{path}": jnp.asarray(x) for path, x in weights.read(base, "csd").items()}
    described = jax.jit(lambda params, batch: rewards.describe(system, params, ("csd_style",), batch))(csd, images)
    np.testing.assert_allclose(encoded["described/csd_style"], described["csd_style"], atol=1e-5)

    fit(ready, tmp_path / "ready")
    lines = [one for one in metrics(tmp_path / "ready") if "loss" in one]
    assert ["reward_csd_style" in line for line in lines] == [False, True]

    main(["pack", str(tmp_path / "ready"), "--to", str(tmp_path / "trained"), "--dtype", "fp32"])
    assert list(weights.components(tmp_path / "trained")) == ["lora"]
    assert image(base, tmp_path / "trained", projector=False).std() > 0
    main(["export", str(tmp_path / "ready"), "--format", "diffusers", "--to", str(tmp_path / "out")])
    exported = load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    wanted = {"transformer_blocks.0.attn.to_q": 6, "single_transformer_blocks.0.attn.to_qkv_mlp_proj": 6}
    wanted |= {"transformer_blocks.0.attn.to_out.0": 4, "single_transformer_blocks.0.attn.to_out": 4}
    assert {name: len(exported[f"transformer.{name}.lora_A.weight"]) for name in wanted} == wanted

    manifest = json.loads((tmp_path / "train" / "manifest.json").read_text())
    assert manifest["rewards"] == ["csd_style"]
    (tmp_path / "train" / "manifest.json").write_text(json.dumps(manifest | {"rewards": []}))
    with pytest.raises(InputError, match=r"does not hold what csd_style of a reward reads .* --rewards"):
        preflight.check_features(ready)
    (tmp_path / "train" / "manifest.json").write_text(json.dumps(manifest))
    towered = config("klein_joint", base, changes=features, reward=REWARD)
    with pytest.raises(InputError, match=r"holds style_moments, but .* is 'siglip'"):
        preflight.check_features(towered)
    without = dataclasses.replace(raw, model=dataclasses.replace(raw.model, style_encoder="siglip"))
    with pytest.raises(InputError, match=r"'lora' has style images but no style tower"):
        preflight.check_stages(without)


def test_experts_and_benchmarks_draw_with_the_family(base, tmp_path):
    """Draw a curation's candidates and a benchmark's images; the weights directory alone decides the family."""
    drawn = dict(name="procedural", size=16, length=1, seed=3)
    content = ExpertConfig(str(base), "content", settings={"num_steps": 1}, batch_size=1)
    curation = CurationConfig(layouts=("preserved",), shard_size=1, stylize=content, destylize=content)
    for step in ("captions", "stylize"):
        folder = steps.run_step(step, curation, drawn, tmp_path / "curation")
    assert folder.place("stylize", 0).decode().shape == (16, 16, 3)

    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    item = EvalItem("a", "omnicontext", prompt="a fox", content_refs=(str(tmp_path / "red.png"),), width=0, height=0)
    made = generate_images([item], tmp_path / "images", str(base), GenerationOptions(num_steps=1))
    assert made == (1, 0) and (tmp_path / "images" / "a_0.png").is_file()


def test_prompts_have_tokens_for_clip(base):
    clip = {"model.rewards": {"clip_vision": vars(ClipConfig.tiny().vision), "clip_text": vars(ClipConfig.tiny().text)}}
    rewarded = dict(weights={"clip_text": 1.0})
    system = config("klein", base, "disentanglement", changes=clip, reward=REWARD | rewarded).system
    length = ClipConfig.tiny().text.max_position_embeddings
    assert system.token_counts() == {"clip_ids": length, "qwen3_ids": 40, "qwen3_valid": 40}
    assert {name: ids.shape for name, ids in system.tokenize("a fox").items()} == {
        name: (count,) for name, count in system.token_counts().items()
    }
    assert config("klein", base, "disentanglement").system.token_counts() == {"qwen3_ids": 40, "qwen3_valid": 40}
    with pytest.raises(InputError, match=r"siglip_text reads t5_ids, which this base model does not have"):
        preflight.check_stages(config("klein", base, reward=REWARD | dict(weights={"siglip_text": 1.0})))
