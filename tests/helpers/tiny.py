# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Mini made so small that a stage of a few steps takes seconds, most of them compilation."""

import collections
import dataclasses
import functools
import math
import pathlib
import runpy
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compilation_cache as jax_cache
from jax.experimental.compilation_cache import compilation_cache
from qwen3_tokenizer import VOCABULARY, train_tokenizer
from traced_once import traced_once

from uso_jax.models.autoencoder2 import AutoEncoder2Config
from uso_jax.models.flux2 import Flux2Config
from uso_jax.models.qwen3 import Qwen3Config
from uso_jax.models.siglip import SiglipConfig
from uso_jax.models.text_qwen3 import Qwen3TextConfig
from uso_jax.models.uso import USO
from uso_jax.training.config import TrainConfig, override
from uso_jax.training.preflight import check_values
from uso_jax.training.stage import StageConfig

ROOT = pathlib.Path(__file__).parents[2]
MINI32 = ROOT / "tests" / "mini32"  # mini at 32 pixels
_USO = runpy.run_path(str(ROOT / "configs" / "uso.py"))
# A sequence of 6 style, 5 text, 16 target and 16 content tokens.
_SIZES = {
    "model.transformer.in_channels": 16,
    "model.transformer.vec_in_dim": 16,
    "model.transformer.context_in_dim": 16,
    "model.transformer.hidden_size": 32,
    "model.transformer.num_heads": 2,
    "model.transformer.axes_dim": (4, 6, 6),
    "model.transformer.depth": 1,
    "model.transformer.depth_single_blocks": 1,
    "model.transformer.lora_rank": 4,
    "model.transformer.projector.siglip_tokens": 4,
    "model.transformer.projector.style_tokens": 2,
    "model.transformer.projector.siglip_dim": 24,
    "model.transformer.projector.layers": (-2, -3, -4),
    "model.autoencoder.ch": 8,
    "model.autoencoder.ch_mult": (1, 2),
    "model.autoencoder.z_channels": 4,
    "model.autoencoder.norm_groups": 4,
    "model.siglip.hidden_size": 24,
    "model.siglip.intermediate_size": 40,
    "model.siglip.num_hidden_layers": 4,
    "model.siglip.num_attention_heads": 2,
    "model.siglip.image_size": 16,
    "model.text.t5_length": 5,
    "model.text.t5.d_model": 16,
    "model.text.t5.d_kv": 8,
    "model.text.t5.d_ff": 32,
    "model.text.t5.num_heads": 2,
    "model.text.t5.num_layers": 1,
    "model.text.clip.hidden_size": 16,
    "model.text.clip.intermediate_size": 32,
    "model.text.clip.num_hidden_layers": 1,
    "model.text.clip.num_attention_heads": 2,
    "model.text.clip.max_position_embeddings": 5,
    "model.siglip_text.projection_size": 24,
    "model.weights": "",
    "data.procedural.size": 16,
    "data.procedural.train.length": 64,
    "data.procedural.heldout.length": 16,
    "data.num_threads": 1,
    "log_every": 1,
    "heldout.num_batches": 1,
    "heldout.batch_size": 8,
    "heldout.grid_rows": 2,
    "heldout.num_steps": 2,
}


def config(*run: str, changes: dict | None = None, **stage_changes) -> TrainConfig:
    """Return a run of mini32's stages or "joint"; `changes` are by dotted path, `stage_changes` are for every stage."""
    config = _USO["get_config"]("mini32")
    stages = {**config.stages, "joint": StageConfig("joint")}
    return _small(dataclasses.replace(config, stages=stages), run, _SIZES | (changes or {}), stage_changes)


def klein(variant: str, weights: pathlib.Path, *run: str, changes: dict | None = None, **stage_changes) -> TrainConfig:
    """Return a run of a variant with FLUX.2 on drawings. `weights` is a folder that has or gets a tokenizer."""
    config = _USO["get_config"](variant)
    if not (weights / "tokenizer_qwen3").exists():
        train_tokenizer(weights / "tokenizer_qwen3", "right")
    text = Qwen3TextConfig(
        Qwen3Config.tiny(vocab_size=VOCABULARY, num_hidden_layers=3, hidden_states=(1, 2, 3)),
        40,
        str(weights / "tokenizer_qwen3"),
        clip_tokenizer="mini",
    )
    encoder = dict(hidden_size=24, num_attention_heads=2, intermediate_size=40, dtype="float32", remat="none")
    tower = SiglipConfig(**encoder, num_hidden_layers=4, image_size=16, patch_size=8)
    has_tower, one = config.model.siglip is not None, dict(depth=1, depth_single_blocks=1)
    model = dataclasses.replace(
        config.model,
        transformer=Flux2Config.tiny(**one, **({} if has_tower else {"projector": None})),
        autoencoder=AutoEncoder2Config.tiny(),
        siglip=tower if has_tower else None,
        text=text,
        weights="",
        frozen_dtype="float32",
        rewards={},
    )
    shared = {name: value for name, value in _SIZES.items() if not name.startswith("model.")}
    shared |= {
        "data.source": "procedural",
        "data.encode_first": False,
        "data.heldout_share": 0.0,
        "heldout.every": 0,
        "heldout.grid_every": 0,
    }
    shared |= {"mesh.data": -1, "mesh.fsdp": 1}
    aspects = dict(target_aspects=(), content_aspects=(), accumulate=1)
    config = dataclasses.replace(config, model=model)
    return _small(config, run or config.run, shared | (changes or {}), aspects | stage_changes)


def _small(config: TrainConfig, run: tuple[str, ...], changes: dict, stage_changes: dict) -> TrainConfig:
    shared = dict(steps=4, batch_size=8, target_size=(16, 16), content_size=(16, 16), warmup_steps=0, reward=None)
    data, stages = stage_changes.pop("data", {}), config.stages
    for name in run:
        values = shared | stage_changes | {"data": {**stages[name].data, **data}}
        config = override(config, {f"stages.{name}.{key}": value for key, value in values.items()})
    changes = {"run": run} | changes
    if not any(name.startswith("evaluation.") for name in changes):
        changes["evaluation"] = None  # its hundred counterfactuals a triplet would take most of a test's time
    config = override(config, changes)
    check_values(config)
    return config


def drawn(system: USO, seed: int = 0, components: Collection[str] | None = None) -> dict[str, jax.Array]:
    """Return parameters like initial ones. NumPy draws them: the program of `system.init` takes long to compile.

    `components` names those that are drawn; None draws all.
    """
    rng, found = np.random.default_rng(seed), {}
    for path, struct in system.shapes.items():
        shape, name = struct.shape, path.rpartition("/")[2]
        if components is not None and path.partition("/")[0] not in components:
            continue
        inputs = math.prod(shape[-4:-1]) if len(shape) >= 4 else shape[-2] if len(shape) >= 2 else 1
        width = {"kernel": inputs**-0.5, "bias": 0.0, "scale": 0.0, "var": 0.0}.get(name, 0.02)
        value = rng.standard_normal(shape, np.float32) * width + (name in ("scale", "var"))
        found[path] = jnp.asarray(value, struct.dtype)
    return found


def compile_cheaply(directory: pathlib.Path):
    """Spend little on optimising what runs for milliseconds, and trace and compile a program once; a fixture's body."""
    settings = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(directory),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in settings}
    _configure(settings)
    with pytest.MonkeyPatch.context() as patch, traced_once():
        for function in (_read, _write):
            patch.setattr(jax_cache, function.__wrapped__.__name__, function)
        yield
    _LOADED.clear()  # a worker would otherwise hold the programs of all modules
    _configure(before)


def _configure(settings: dict):
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


# The programs that were compiled or read last, by their key: to link one anew, as it is read, takes up to 3 seconds.
_LOADED: collections.OrderedDict[str, tuple] = collections.OrderedDict()


def _keep(key: str, found: tuple) -> tuple:
    if found[0] is not None:
        _LOADED[key] = found
        _LOADED.move_to_end(key)
        if len(_LOADED) > 64:
            _LOADED.popitem(last=False)
    return found


@functools.wraps(jax_cache.get_executable_and_time)
def _read(key, *rest):
    return _keep(key, _LOADED.get(key) or _read.__wrapped__(key, *rest))


@functools.wraps(jax_cache.put_executable_and_time)
def _write(key, name, executable, backend, seconds):
    _keep(key, (executable, seconds))
    _write.__wrapped__(key, name, executable, backend, seconds)
