# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""T5 and CLIP against transformers, through the tables that import the released weights."""

import functools

import golden_files as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from comparison import error
from flax import nnx
from text_encoders import EOS, T5, load_clip, load_t5, numbers, torch_clip, torch_t5
from transformers.models.t5.modeling_t5 import T5Attention

from convert.tables.clip import TEXT
from convert.tables.t5 import ALIASES, ENCODER
from uso_jax import params
from uso_jax.models import clip, t5
from uso_jax.models.clip import ClipText, ClipTextConfig
from uso_jax.models.t5 import T5Config, T5Encoder, relative_position_buckets
from uso_jax.weights.tables.table import expand, to_torch

TOLERANCE = 1e-5  # of the output's standard deviation


def compiled(model: nnx.Module):
    graphdef, state = nnx.split(model)
    return functools.partial(jax.jit(lambda state, *inputs: nnx.merge(graphdef, state)(*inputs)), state)


@functools.cache
def jax_t5():
    return compiled(load_t5())


@functools.cache
def jax_clip():
    return compiled(load_clip())


def ids(*shape: int, vocab: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, vocab, shape, dtype=np.int32)


def run_torch(model, input_ids: np.ndarray, **inputs):
    with torch.no_grad():
        return model(input_ids=torch.tensor(input_ids, dtype=torch.long), **inputs)


# ---------------------------------------------------------------------------------------------------- T5


@pytest.mark.parametrize("length", [1, 15, 45])
def test_t5(length):
    tokens = ids(2, length)
    want = run_torch(torch_t5(), tokens).last_hidden_state
    assert error(jax_t5()(jnp.asarray(tokens)), want) < TOLERANCE


def test_t5_on_small_activations():
    reference, tokens = torch_t5(embedding_std=1e-3), ids(2, 5)
    want = run_torch(reference, tokens).last_hidden_state
    assert error(compiled(load_t5(reference))(jnp.asarray(tokens)), want) < TOLERANCE
    assert error(compiled(load_t5(reference, layer_norm_epsilon=1e-5))(jnp.asarray(tokens)), want) > 1e-2


def test_t5_attends_to_valid_tokens_only():
    tokens = ids(3, 19)
    valid = np.arange(19)[None] < np.asarray([19, 6, 1])[:, None]
    want = run_torch(torch_t5(), tokens, attention_mask=torch.tensor(valid)).last_hidden_state.numpy()
    for other in (tokens, np.where(valid, tokens, 1)):
        got = np.asarray(jax_t5()(jnp.asarray(other), jnp.asarray(valid)))
        assert error(got[valid], want[valid]) < TOLERANCE
    assert error(np.asarray(jax_t5()(jnp.asarray(tokens)))[valid], want[valid]) > 0.1


def test_t5_in_bfloat16():
    tokens = jnp.asarray(ids(2, 15))
    model = load_t5(dtype="bfloat16")
    got = compiled(model)(tokens)
    assert got.dtype == jnp.bfloat16 and model.position_bias(15).dtype == jnp.float32
    assert error(got, jax_t5()(tokens)) < 0.2


@pytest.mark.parametrize("num_buckets, max_distance", [(32, 128), (8, 16), (10, 31)])
def test_t5_buckets(num_buckets, max_distance):
    positions = torch.arange(600)
    want = T5Attention._relative_position_bucket(
        positions[None, :] - positions[:, None], num_buckets=num_buckets, max_distance=max_distance
    )
    np.testing.assert_array_equal(relative_position_buckets(600, num_buckets, max_distance), want)


def test_t5_has_a_full_size_bias_beyond_the_last_bucket():
    """Check the released sizes with FLUX's 512 tokens: distances above 128 share the last buckets."""
    buckets = relative_position_buckets(512, 32, 128)
    assert set(buckets[0, 128:]) == {31} and set(buckets[511, : 511 - 127]) == {15}
    assert buckets.min() == 0 and np.unique(buckets).size == 32 - 1  # bucket 16, distance 0 after the query, is unused


def _no_bias(monkeypatch):
    monkeypatch.setattr(T5Encoder, "position_bias", lambda self, length: jnp.zeros((1, T5.num_heads, length, length)))


def _mirrored_buckets(monkeypatch):
    monkeypatch.setattr(t5, "relative_position_buckets", lambda *args: relative_position_buckets(*args).T)


def _scaled_attention(monkeypatch):
    original = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *args, scale, **kw: original(*args, **kw))


def _exact_gelu(monkeypatch):
    monkeypatch.setattr(t5, "gelu_tanh", lambda x: jax.nn.gelu(x, approximate=False))


@pytest.mark.parametrize("mutate", [_no_bias, _mirrored_buckets, _scaled_attention, _exact_gelu])
def test_t5_mistakes_are_seen(mutate, monkeypatch):
    tokens = ids(2, 15)
    want = run_torch(torch_t5(), tokens).last_hidden_state
    mutate(monkeypatch)
    assert error(compiled(load_t5())(jnp.asarray(tokens)), want) > 20 * TOLERANCE


# ---------------------------------------------------------------------------------------------------- CLIP


def prompts(length: int, *ends: tuple[int, ...]) -> np.ndarray:
    """Return one text per tuple, with an end-of-text token at each of its positions."""
    tokens = ids(len(ends), length)
    for row, positions in zip(tokens, ends, strict=True):
        row[list(positions)] = EOS
    return tokens


@pytest.mark.parametrize("length", [1, 16])
def test_clip(length):
    tokens = prompts(length, (length - 1,), (length // 2,))
    want = run_torch(torch_clip(), tokens)
    got = jax_clip()(jnp.asarray(tokens))
    assert error(got.last_hidden_state, want.last_hidden_state) < TOLERANCE
    assert error(got.pooler_output, want.pooler_output) < TOLERANCE


@pytest.mark.parametrize("eos", [EOS, clip.LEGACY_EOS])
def test_clip_pools_at_the_first_end_of_text(eos):
    # Ends early, late, twice, padded with the end token as CLIP-L's tokenizer does, and never.
    ends = ((3,), (12,), (4, 9), (5, *range(6, 13)), (0,), ())
    tokens = prompts(13, *ends)
    want = run_torch(torch_clip(eos), tokens)
    got = compiled(load_clip(torch_clip(eos), eos_token_id=eos))(jnp.asarray(tokens))
    assert error(got.pooler_output, want.pooler_output) < TOLERANCE
    for row, positions in enumerate(ends[:-1]):
        np.testing.assert_array_equal(got.pooler_output[row], got.last_hidden_state[row, positions[0]])
    never = tokens[-1].argmax() if eos == clip.LEGACY_EOS else 0
    np.testing.assert_array_equal(got.pooler_output[-1], got.last_hidden_state[-1, never])


def test_clip_does_not_see_padding():
    tokens = prompts(16, (6,), (6,))
    padded = tokens.copy()
    padded[:, 7:] = EOS
    got = [jax_clip()(jnp.asarray(x)).pooler_output for x in (tokens, padded)]
    np.testing.assert_array_equal(got[0], got[1])


def test_clip_on_small_activations():
    reference, tokens = torch_clip(embedding_std=1e-3), prompts(5, (4,))
    want = run_torch(reference, tokens).last_hidden_state
    assert error(compiled(load_clip(reference))(jnp.asarray(tokens)).last_hidden_state, want) < TOLERANCE
    assert (
        error(compiled(load_clip(reference, layer_norm_eps=1e-6))(jnp.asarray(tokens)).last_hidden_state, want) > 1e-2
    )


def test_clip_in_bfloat16():
    tokens = jnp.asarray(prompts(16, (9,), (14,)))
    got = compiled(load_clip(dtype="bfloat16"))(tokens)
    assert got.pooler_output.dtype == jnp.bfloat16
    assert error(got.pooler_output, jax_clip()(tokens).pooler_output) < 0.2


def test_clip_refuses_long_texts():
    with pytest.raises(ValueError, match=r"17 tokens.* 16 positions"):
        jax_clip()(jnp.zeros((1, 17), jnp.int32))


def _tanh_gelu(monkeypatch):
    monkeypatch.setattr(clip, "quick_gelu", lambda x: jax.nn.gelu(x, approximate=True))


def _not_causal(monkeypatch):
    original = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *args, is_causal, **kw: original(*args, **kw))


@pytest.mark.parametrize("mutate", [_tanh_gelu, _not_causal])
def test_clip_mistakes_are_seen(mutate, monkeypatch):
    tokens = prompts(16, (10,), (14,))
    want = run_torch(torch_clip(), tokens).pooler_output
    mutate(monkeypatch)
    assert error(compiled(load_clip())(jnp.asarray(tokens)).pooler_output, want) > 20 * TOLERANCE


# ---------------------------------------------------------------------------------------------------- both


def shapes_of(rows, make) -> dict[str, list[int]]:
    return {key: list(entry.shape) for key, entry in expand(rows, params.shapes(make)).items()}


def test_t5_manifest():
    want = {k: shape for k, (shape, _) in golden.MANIFESTS["t5-v1_1-xxl/pytorch_model.bin (encoder only)"].items()}
    for alias, key in ALIASES.items():
        assert want.pop(alias) == want[key]
    assert shapes_of(ENCODER, lambda rngs: T5Encoder(T5Config(), rngs=rngs)) == want


def test_clip_manifest():
    manifest = golden.MANIFESTS["clip-vit-large-patch14/model.safetensors (text tower only)"]
    want = {key.removeprefix("text_model."): shape for key, (shape, _) in manifest.items()}
    assert shapes_of(TEXT, lambda rngs: ClipText(ClipTextConfig(), rngs=rngs)) == want


@pytest.mark.parametrize("rows, load, reference", [(ENCODER, load_t5, torch_t5), (TEXT, load_clip, torch_clip)])
def test_round_trip(rows, load, reference):
    flat = {path: np.asarray(value) for path, value in params.from_model(load()).items()}
    shapes = {path: jax.ShapeDtypeStruct(value.shape, value.dtype) for path, value in flat.items()}
    back, want = dict(to_torch(rows, shapes, flat)), numbers(reference())
    assert back.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_array_equal(back[key], value)


@pytest.mark.parametrize("model, length", [(jax_t5, 15), (jax_clip, 16)])
def test_an_id_outside_the_vocabulary_is_not_silent(model, length):
    out = model()(jnp.full((2, length), 64, jnp.int32))
    assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(out))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: T5Config(relative_attention_num_buckets=7), "relative_attention_num_buckets must be even"),
        (lambda: T5Config(relative_attention_max_distance=8), "must exceed 8, not 8"),
        (lambda: T5Config(remat="some"), "remat must be one of"),
        (lambda: ClipTextConfig(num_attention_heads=5), "hidden_size 768 is not divisible by 5 heads"),
        (lambda: ClipTextConfig(eos_token_id=49408), "eos_token_id 49408 is outside the vocabulary"),
        (lambda: ClipTextConfig(remat="some"), "remat must be one of"),
    ],
)
def test_configs_refuse_nonsense(make, message):
    with pytest.raises(ValueError, match=message):
        make()
