# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""SigLIP's two towers and their logits against transformers."""

import dataclasses
import functools

import golden_files as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from comparison import error
from flax import nnx
from image_encoders import CLIP_SIZES, DINO_SIZES, run, run_torch, sizes
from oracle_torch import drawn_for, fill, normal

from convert.tables.clip import TEXT as CLIP_TEXT
from convert.tables.siglip import VISION
from uso_jax import params
from uso_jax.models import siglip
from uso_jax.models.clip import unit
from uso_jax.models.siglip import SiglipConfig, SiglipText, SiglipTextConfig, SiglipVision
from uso_jax.training.objectives.contrastive import sigmoid_loss
from uso_jax.weights.tables.table import DENSE, Row, expand, to_torch

TOLERANCE = 1e-5  # of the output's standard deviation
TEXT: tuple[Row, ...] = (*CLIP_TEXT, ("head", "head", DENSE))
TEXT_CONFIG, VISION_CONFIG = SiglipTextConfig.tiny(), SiglipConfig.tiny(image_size=28, patch_size=9)
TEXT_SIZES = (*CLIP_SIZES, "vocab_size", "max_position_embeddings", "projection_size")
IDS = np.random.default_rng(0).integers(0, TEXT_CONFIG.vocab_size, (3, TEXT_CONFIG.max_position_embeddings), np.int32)
PIXELS = normal(1, 3, 28, 28, 3)


def torch_text_config(config: SiglipTextConfig) -> transformers.SiglipTextConfig:
    return transformers.SiglipTextConfig(**sizes(config, TEXT_SIZES), bos_token_id=0, eos_token_id=1)


def make_torch(scale: float = 1.0) -> transformers.SiglipModel:
    """Return both towers with random parameters, embeddings times `scale`."""
    text = torch_text_config(TEXT_CONFIG).to_dict()
    vision = sizes(VISION_CONFIG, DINO_SIZES)
    model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
    weights = drawn_for(model, 0)
    for key, value in weights.items():
        if "embeddings." in key:
            value *= scale * (value[0].size ** 0.5 if "_embedding." in key and value.ndim == 2 else 1)
    return fill(model, weights)


torch_model = functools.cache(make_torch)


def numbers(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in model.state_dict().items()}


def load_text(reference=None, **changes) -> SiglipText:
    config = dataclasses.replace(TEXT_CONFIG, **changes)
    reference = reference or torch_model()
    return golden.load(lambda rngs: SiglipText(config, rngs=rngs), TEXT, numbers(reference.text_model))


def load_vision() -> SiglipVision:
    make = lambda rngs: SiglipVision(VISION_CONFIG, rngs=rngs)
    return golden.load(make, VISION, numbers(torch_model().vision_model))


def torch_text(model: transformers.SiglipModel, ids: np.ndarray):
    with torch.no_grad():
        return model.text_model(input_ids=torch.tensor(ids, dtype=torch.long))


@pytest.mark.parametrize("length", [1, 7, TEXT_CONFIG.max_position_embeddings])
def test_text(length):
    ids = IDS[:, :length]
    want, got = torch_text(torch_model(), ids), run(load_text(), jnp.asarray(ids))
    assert error(got.last_hidden_state, want.last_hidden_state) < TOLERANCE
    assert error(got.pooler_output, want.pooler_output) < TOLERANCE


def test_text_on_small_activations():
    reference = make_torch(1e-3)
    want = torch_text(reference, IDS).last_hidden_state
    assert error(run(load_text(reference), jnp.asarray(IDS)).last_hidden_state, want) < TOLERANCE
    assert error(run(load_text(reference, layer_norm_eps=1e-5), jnp.asarray(IDS)).last_hidden_state, want) > 1e-2


def test_vision_with_its_pooling_head():
    want, got = run_torch(torch_model().vision_model, PIXELS), run(load_vision(), jnp.asarray(PIXELS))
    assert error(got.last_hidden_state, want.last_hidden_state) < TOLERANCE
    assert error(got.pooler_output, want.pooler_output) < TOLERANCE


def test_both_towers_and_their_loss():
    model = torch_model()
    want = run_torch(model, PIXELS, input_ids=torch.tensor(IDS, dtype=torch.long), return_loss=True)
    image, text = (
        unit(run(tower, jnp.asarray(x)).pooler_output) for tower, x in ((load_vision(), PIXELS), (load_text(), IDS))
    )
    assert error(image, want.image_embeds) < TOLERANCE and error(text, want.text_embeds) < TOLERANCE
    scale, bias = (jnp.asarray(value.numpy()[0]) for value in (model.logit_scale, model.logit_bias))
    # transformers takes the mean over texts where the paper's Eq. (1) takes it over images: one number.
    np.testing.assert_allclose(sigmoid_loss(image, text, jnp.exp(scale), bias), want.loss, rtol=1e-5)


def test_text_sees_both_ways_and_padding():
    changed = IDS.copy()
    changed[:, -2] = (changed[:, -2] + 1) % TEXT_CONFIG.vocab_size
    model = load_text()
    got, other = (run(model, jnp.asarray(ids)) for ids in (IDS, changed))
    assert (np.abs(got.last_hidden_state - other.last_hidden_state).max(axis=-1) > 1e-3).all()


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_gradient(remat):
    def grads(remat):
        structure = params.ModelDef(lambda rngs: SiglipText(dataclasses.replace(TEXT_CONFIG, remat=remat), rngs=rngs))
        weights = params.from_model(load_text())
        return jax.jit(jax.grad(lambda p: jnp.sum(structure(p)(jnp.asarray(IDS)).pooler_output ** 2)))(weights)

    want, got = grads("none"), grads(remat)
    for path, value in want.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(got[path], value, atol=1e-5 * scale, rtol=0, err_msg=path)
        assert scale > 0 or path.endswith("k_proj/bias"), path


def test_text_in_bfloat16():
    got = run(load_text(dtype="bfloat16"), jnp.asarray(IDS)).pooler_output
    assert got.dtype == jnp.bfloat16
    assert error(got, torch_text(torch_model(), IDS).pooler_output) < 0.2


def _exact_gelu(monkeypatch):
    monkeypatch.setattr(siglip, "gelu_tanh", lambda x: jax.nn.gelu(x, approximate=False))


def _causal(monkeypatch):
    original = jax.nn.dot_product_attention
    causal = lambda *args, **options: original(*args, **options | {"is_causal": True})
    monkeypatch.setattr(jax.nn, "dot_product_attention", causal)


@pytest.mark.parametrize("mutate", [_exact_gelu, _causal])
def test_mistakes_are_seen(mutate, monkeypatch):
    want = torch_text(torch_model(), IDS).last_hidden_state
    mutate(monkeypatch)
    assert error(run(load_text(), jnp.asarray(IDS)).last_hidden_state, want) > 20 * TOLERANCE


def test_round_trip():
    flat = {path: np.asarray(value) for path, value in params.from_model(load_text()).items()}
    shapes = {path: jax.ShapeDtypeStruct(value.shape, value.dtype) for path, value in flat.items()}
    back, want = dict(to_torch(TEXT, shapes, flat)), numbers(torch_model().text_model)
    assert back.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_array_equal(back[key], value)


def test_full_size_shapes():
    config = SiglipTextConfig()
    with torch.device("meta"):
        want = transformers.SiglipTextModel(torch_text_config(config)).state_dict()
    shapes = params.shapes(lambda rngs: SiglipText(config, rngs=rngs))
    got = {key: entry.shape for key, entry in expand(TEXT, shapes).items()}
    assert got == {key: tuple(value.shape) for key, value in want.items()}
    assert params.count(shapes) == 449_734_896


def test_an_id_outside_the_vocabulary_is_not_silent():
    out = run(load_text(), jnp.asarray(np.where(np.arange(12) == 3, 64, IDS)))
    assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(out))


def test_long_texts_are_refused():
    with pytest.raises(ValueError, match=r"13 tokens.* 12 positions"):
        load_text()(jnp.zeros((1, 13), jnp.int32))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_attention_heads": 5}, "hidden_size 1152 is not divisible by 5 heads"),
        ({"remat": "some"}, "remat must be one of full, offload, attention, dots, none"),
    ],
)
def test_configs_refuse_nonsense(changes, message):
    with pytest.raises(ValueError, match=message):
        SiglipTextConfig(**changes)


def test_a_stem_is_strided_convolutions_before_the_patches():
    config = SiglipConfig.tiny(image_size=32, patch_size=16, stem=(4, 8))
    tower = SiglipVision(config, rngs=nnx.Rngs(0))
    assert tower.patch_embedding.kernel.shape == (4, 4, 8, config.hidden_size)
    x = torch.from_numpy(PIXELS[:, :28, :28]).permute(0, 3, 1, 2)
    x = want = torch.nn.functional.pad(x, (0, 4, 0, 4))
    for conv in tower.stem.convs:
        kernel, bias = (torch.from_numpy(np.array(value[...])) for value in (conv.kernel, conv.bias))
        want = torch.nn.functional.conv2d(want, kernel.permute(3, 2, 0, 1), bias, stride=2, padding=1)
        want = torch.nn.functional.layer_norm(want.permute(0, 2, 3, 1), (want.shape[1],), eps=config.layer_norm_eps)
        want = torch.nn.functional.gelu(want, approximate="tanh").permute(0, 3, 1, 2)
    pixels = jnp.asarray(x.permute(0, 2, 3, 1).numpy())
    assert error(tower.stem(pixels), want.permute(0, 2, 3, 1)) < TOLERANCE
    assert run(tower, pixels).last_hidden_state.shape == (3, config.num_tokens, config.hidden_size)
    with pytest.raises(ValueError, match="patch_size 12 does not divide"):
        SiglipConfig.tiny(patch_size=12, stem=(4, 8, 8))
