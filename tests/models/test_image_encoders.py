# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""CLIP, CSD, DINO and DINOv2 against transformers, through the tables that import the released weights."""

import dataclasses

import golden_files as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from comparison import error
from flax import nnx
from image_encoders import (
    CLIP,
    DINO,
    DINOV2,
    dino_rows,
    load_clip,
    load_dino,
    make_torch_clip,
    make_torch_dino,
    numbers,
    openai_names,
    original_names,
    pixels,
    run,
    run_torch,
    tensors,
    torch_clip,
    torch_dino,
)

from convert.tables import clip as clip_tables
from convert.tables import dino as dino_tables
from convert.tables.clip import CSD as CSD_TABLE
from uso_jax import params
from uso_jax.models import clip, dino
from uso_jax.models.clip import Clip, ClipConfig, ClipTextConfig, ClipVision, ClipVisionConfig
from uso_jax.models.csd import Csd
from uso_jax.models.dino import Dino, DinoConfig
from uso_jax.weights.tables.table import expand, to_flax, to_torch

pytestmark = pytest.mark.usefixtures("cheap_compilation")

TOLERANCE = 1e-5  # of the output's standard deviation


# ---------------------------------------------------------------------------------------------------- other names


def assert_same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]):
    assert got.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_array_equal(got[key], value)


@pytest.mark.parametrize("network", ["clip", "dino", "dinov2"])
def test_both_names_give_the_same_parameters_and_go_back(network):
    if network == "clip":
        model, make, renamed = torch_clip(), lambda rngs: Clip(CLIP, rngs=rngs), openai_names
        tables = (clip_tables.CLIP, clip_tables.OPENAI)
    else:
        config = DINO if network == "dino" else DINOV2
        model, make, renamed = torch_dino(config), lambda rngs: Dino(config, rngs=rngs), original_names
        tables = (dino_rows(config), dino_tables.ORIGINAL)
    weights, shapes = numbers(tensors(model)), params.shapes(make)
    flat = to_flax(tables[0], shapes, weights.items())
    assert_same(to_flax(tables[1], shapes, renamed(weights).items()), flat)
    assert_same(dict(to_torch(tables[0], shapes, flat)), weights)
    assert_same(dict(to_torch(tables[1], shapes, flat)), renamed(weights))


# ---------------------------------------------------------------------------------------------------- CLIP and CSD


def test_clip_vision():
    images = pixels(32)
    want = run_torch(torch_clip().vision_model, images)
    got = run(load_clip().vision_model, jnp.asarray(images))
    assert error(got.last_hidden_state, want.last_hidden_state) < TOLERANCE
    assert error(got.pooler_output, want.pooler_output) < TOLERANCE
    with torch.no_grad():
        assert error(got.image_embeds, torch_clip().visual_projection(want.pooler_output)) < TOLERANCE


def test_clip_cosines():
    images, ids = pixels(32), np.random.default_rng(1).integers(3, 60, (3, 16), dtype=np.int32)
    ids[:, 9] = CLIP.text.eos_token_id
    want = run_torch(torch_clip(), images, input_ids=torch.tensor(ids, dtype=torch.long))
    model = load_clip()
    image, text = (
        run(model, jnp.asarray(images), method="embed_images"),
        run(model, jnp.asarray(ids), method="embed_texts"),
    )
    assert error(image, want.image_embeds) < TOLERANCE and error(text, want.text_embeds) < TOLERANCE
    assert error(jnp.exp(model.logit_scale[...]) * image @ text.T, want.logits_per_image) < TOLERANCE


def test_towers_without_projection():
    rows = {key.removeprefix("vision_model."): value for key, value in numbers(tensors(torch_clip())).items()}
    weights = {key: value for key, value in rows.items() if not key.startswith(("text_", "visual_", "logit_"))}
    config = dataclasses.replace(CLIP.vision, projection_dim=0)
    tower = golden.load(lambda rngs: ClipVision(config, rngs=rngs), clip_tables.VISION, weights)
    got = run(tower, jnp.asarray(pixels(32)))
    assert got.image_embeds is None
    assert error(got.pooler_output, run_torch(torch_clip().vision_model, pixels(32)).pooler_output) < TOLERANCE


def test_csd():
    images, width = pixels(32), CLIP.vision.hidden_size
    rng = np.random.default_rng(2)
    style, content = rng.normal(size=(2, width, CLIP.vision.projection_dim)).astype(np.float32)
    weights = {"last_layer_style": style, "last_layer_content": content}
    for key, value in openai_names(numbers(tensors(torch_clip()))).items():
        if key.startswith("visual.") and key != "visual.proj":
            weights[key.replace("visual.", "backbone.")] = value
    got = run(golden.load(lambda rngs: Csd(CLIP.vision, rngs=rngs), CSD_TABLE, weights), jnp.asarray(images))
    feature = run_torch(torch_clip().vision_model, images).pooler_output
    normalize = torch.nn.functional.normalize
    assert error(got.feature, feature) < TOLERANCE
    assert error(got.style, normalize(feature @ torch.tensor(style), dim=1)) < TOLERANCE
    assert error(got.content, normalize(feature @ torch.tensor(content), dim=1)) < TOLERANCE


def test_unit_has_finite_gradients_at_zero():
    assert jnp.isfinite(jax.grad(lambda x: clip.unit(x).sum())(jnp.zeros((1, 4)))).all()


def test_clip_in_bfloat16():
    config = dataclasses.replace(CLIP, vision=dataclasses.replace(CLIP.vision, dtype="bfloat16"))
    got = run(load_clip(config=config).vision_model, jnp.asarray(pixels(32)))
    assert got.image_embeds.dtype == jnp.bfloat16
    assert error(got.pooler_output, run_torch(torch_clip().vision_model, pixels(32)).pooler_output) < 0.2


# ---------------------------------------------------------------------------------------------------- DINO


# At the trained size, larger, smaller, and with a margin that fills no patch.
@pytest.mark.parametrize("config", [DINO, DINOV2], ids=["dino", "dinov2"])
@pytest.mark.parametrize("size", [(40, 40), (56, 43), (16, 24)])
def test_dino(config, size):
    images = pixels(*size)
    options = {} if config.layer_scale else {"interpolate_pos_encoding": True}
    want = run_torch(torch_dino(config), images, **options)
    got = run(load_dino(config), jnp.asarray(images))
    assert error(got.last_hidden_state, want.last_hidden_state) < TOLERANCE
    np.testing.assert_array_equal(got.pooler_output, got.last_hidden_state[:, 0])


@pytest.mark.parametrize("old, new", [(37, 16), (14, 16), (5, 5), (5, 1), (1, 3)])
def test_cubic_weights(old, new):
    line = np.random.default_rng(0).normal(size=old)
    want = torch.nn.functional.interpolate(torch.tensor(line)[None, None, None], (1, new), mode="bicubic")
    np.testing.assert_allclose(dino.cubic_weights(old, new) @ line, want[0, 0, 0], atol=1e-12)


def test_dino_in_bfloat16():
    got = run(load_dino(DINOV2, dtype="bfloat16"), jnp.asarray(pixels(40))).pooler_output
    assert got.dtype == jnp.bfloat16
    assert error(got, run_torch(torch_dino(DINOV2), pixels(40)).pooler_output) < 0.2


# ---------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("eps, bound", [(None, (0, TOLERANCE)), (1e-5, (1e-2, np.inf))])
def test_dino_on_small_activations(eps, bound):
    reference = torch_dino(DINO, embedding_std=1e-3)
    got = run(load_dino(DINO, reference, layer_norm_eps=eps or DINO.layer_norm_eps), jnp.asarray(pixels(40)))
    assert bound[0] <= error(got.last_hidden_state, run_torch(reference, pixels(40)).last_hidden_state) < bound[1]


@pytest.mark.parametrize("eps, bound", [(None, (0, TOLERANCE)), (1e-6, (1e-2, np.inf))])
def test_clip_on_small_activations(eps, bound):
    reference = torch_clip(embedding_std=1e-3)
    vision = dataclasses.replace(CLIP.vision, layer_norm_eps=eps or CLIP.vision.layer_norm_eps)
    got = run(load_clip(reference, dataclasses.replace(CLIP, vision=vision)).vision_model, jnp.asarray(pixels(32)))
    assert bound[0] <= error(got.pooler_output, run_torch(reference.vision_model, pixels(32)).pooler_output) < bound[1]


def test_mistakes_are_seen(monkeypatch):
    tanh = lambda x: jax.nn.gelu(x, approximate=True)
    monkeypatch.setattr(clip, "quick_gelu", tanh)
    got = run(load_clip.__wrapped__().vision_model, jnp.asarray(pixels(32))).pooler_output
    assert error(got, run_torch(torch_clip().vision_model, pixels(32)).pooler_output) > 20 * TOLERANCE
    monkeypatch.setattr(dino, "gelu", tanh)
    got = run(load_dino.__wrapped__(DINO), jnp.asarray(pixels(40))).last_hidden_state
    assert error(got, run_torch(torch_dino(DINO), pixels(40)).last_hidden_state) > 20 * TOLERANCE


# ---------------------------------------------------------------------------------------------------- full sizes


FULL = {
    "clip B/32": (Clip, clip.CLIP["B/32"], 151_277_313),
    "clip B/16": (Clip, clip.CLIP["B/16"], 149_620_737),
    "clip L/14": (Clip, clip.CLIP["L/14"], 427_616_513),
    "dino_vits16": (Dino, dino.DINO["dino_vits16"], 21_665_664),
    "dinov2_vits14": (Dino, dino.DINO["dinov2_vits14"], 22_056_576),
    "dinov2_vitb14": (Dino, dino.DINO["dinov2_vitb14"], 86_580_480),
    "dinov2_vitl14": (Dino, dino.DINO["dinov2_vitl14"], 304_368_640),
}


@pytest.mark.parametrize("name", FULL)
def test_full_size(name):
    network, config, count = FULL[name]
    shapes = params.shapes(lambda rngs: network(config, rngs=rngs))
    assert params.count(shapes) == count
    with torch.device("meta"):
        reference = make_torch_clip(config) if network is Clip else make_torch_dino(config)
    want = {key: tuple(value.shape) for key, value in tensors(reference).items()}
    rows = clip_tables.CLIP if network is Clip else dino_rows(config)
    assert {key: entry.shape for key, entry in expand(rows, shapes).items()} == want


def test_full_size_csd():
    entries = expand(CSD_TABLE, params.shapes(lambda rngs: Csd(rngs=rngs)))
    assert len(entries) == 297
    assert entries["last_layer_style"].shape == entries["last_layer_content"].shape == (1024, 768)
    assert entries["backbone.transformer.resblocks.23.attn.in_proj_weight"].shape == (3072, 1024)
    assert "backbone.proj" not in entries and entries["backbone.positional_embedding"].shape == (257, 1024)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ClipVisionConfig(num_attention_heads=5), "hidden_size 768 is not divisible by 5 heads"),
        (lambda: ClipVisionConfig(image_size=16), "image_size 16 is smaller than one patch of 32"),
        (lambda: ClipVisionConfig(projection_dim=-1), "projection_dim must be positive, or 0 .*, not -1"),
        (lambda: ClipConfig(text=ClipTextConfig()), r"not 512 \(vision\) and 0 \(text\)"),
        (lambda: DinoConfig(num_attention_heads=5), "hidden_size 384 is not divisible by 5 heads"),
        (lambda: DinoConfig(image_size=8), "image_size 8 is smaller than one patch of 16"),
        (lambda: DinoConfig(remat="some"), "remat must be one of"),
        (lambda: Csd(ClipVisionConfig.tiny(projection_dim=0), rngs=nnx.Rngs(0)), "projection_dim must be positive"),
        (lambda: load_clip().vision_model(jnp.zeros((1, 32, 40, 3))), "images must be 32 x 32, not 32 x 40"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
