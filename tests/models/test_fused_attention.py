# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The fused kernels, interpreted, against the plain path from projected tokens to merged heads."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from jax.sharding import AxisType

from uso_jax.models.attention import dispatch, flash
from uso_jax.models.flux import Flux, FluxConfig
from uso_jax.models.flux2 import Flux2, Flux2Config
from uso_jax.models.layers.embeddings import rotary_embedding
from uso_jax.models.layers.joint_blocks import Joint, KeysValues, Projected, QKNorm
from uso_jax.params import ModelDef


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


CONFIG = FluxConfig.tiny(hidden_size=64, num_heads=4, axes_dim=(4, 6, 6))
FUSED = dataclasses.replace(CONFIG, attention="fused")


def inputs(lengths, b=2, num_kept=0):
    """Draw the qkv of streams, factors of their norms, position ids, and kept keys and values."""
    rng = np.random.default_rng(sum(lengths))
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    qkvs = [draw(b, length, 3 * CONFIG.hidden_size) for length in lengths]
    scales = [1 + 0.3 * draw(2, CONFIG.head_dim) for _ in lengths]
    ids = jnp.asarray(rng.integers(0, 50, (1, sum(lengths), 3)), jnp.float32)
    kept = KeysValues(*(draw(b, num_kept, CONFIG.num_heads, CONFIG.head_dim) for _ in range(2))) if num_kept else None
    return qkvs, scales, ids, kept


def attend(config, qkvs, scales, ids, kept=None, valid=None):
    """Return the merged heads of all streams, and the sequence's own keys and values."""
    norms = []
    for scale in scales:
        norm = QKNorm(config.head_dim, rngs=nnx.Rngs(0))
        norm.query_norm.scale[...], norm.key_norm.scale[...] = scale
        norms.append(norm)
    joint = Joint.build(config, rotary_embedding(ids, config.axes_dim, config.theta), valid)
    out, own = joint.attend([Projected(*one) for one in zip(qkvs, norms, strict=True)], kept, config)
    return jnp.concatenate(out, axis=1), own


def values_and_gradients(config, qkvs, scales, ids, kept=None, valid=None):
    """Return outputs, own keys and values, and the gradients of qkv, factors and kept tokens."""

    @jax.jit
    def run(qkvs, scales, kept):
        out, pullback = jax.vjp(lambda *one: attend(config, one[0], one[1], ids, one[2], valid), qkvs, scales, kept)
        towards = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape).astype(x.dtype), out)
        return out, pullback(towards)

    return run(qkvs, scales, kept)


def assert_close(got, want, share=1e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=share * float(jnp.abs(b).max()), rtol=0)


# Whole tiles; tiles and blocks of queries that are not full, and several parts of keys; kept tokens.
@pytest.mark.parametrize(
    "lengths, num_kept, masked",
    (
        ((64, 128), 0, False),
        ((70, 90), 0, True),
        pytest.param((64, 128), 0, True, marks=pytest.mark.slow),
        pytest.param((70, 90), 0, False, marks=pytest.mark.slow),
        pytest.param((150,), 5, False, marks=pytest.mark.slow),
        pytest.param((150,), 5, True, marks=pytest.mark.slow),
    ),
)
def test_equals_the_plain_path(monkeypatch, lengths, num_kept, masked):
    for name, most in (("_QUERIES", 128), ("_PART", 64), ("_BACKWARD_PART", 64)):
        monkeypatch.setattr(flash, name, most)
    qkvs, scales, ids, kept = inputs(lengths, num_kept=num_kept)
    valid = np.random.default_rng(0).random((2, sum(lengths) + num_kept)) < 0.5 if masked else None
    arguments = qkvs, scales, ids, kept, valid if valid is None else jnp.asarray(valid)
    assert_close(values_and_gradients(FUSED, *arguments), values_and_gradients(CONFIG, *arguments))


@pytest.mark.slow
def test_bfloat16_rounds_no_worse():
    qkvs, scales, ids, _ = inputs((64, 128))
    half = [qkv.astype(jnp.bfloat16) for qkv in qkvs]
    exact = values_and_gradients(CONFIG, [qkv.astype(jnp.float32) for qkv in half], scales, ids)
    errors = []
    for config in (FUSED, CONFIG):
        found = values_and_gradients(config, half, scales, ids)
        off = [jnp.abs(a.astype(jnp.float32) - b).mean() for a, b in
               zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)]  # fmt: skip
        errors.append(np.asarray(off))
    outputs = errors[0].size - len(scales)  # the rest are sums over all tokens
    assert (errors[0] <= 1.1 * errors[1])[:outputs].all()
    assert (errors[0] <= 1.5 * errors[1]).all()


@pytest.mark.parametrize("axes", ((2, 2, 2), pytest.param((1, 2, 4), marks=pytest.mark.slow)))
def test_equals_the_plain_path_on_a_mesh(axes):
    qkvs, scales, ids, _ = inputs((64, 128), b=4)
    valid = jnp.asarray(np.random.default_rng(0).random((4, 192)) < 0.5)
    want = values_and_gradients(CONFIG, qkvs, scales, ids, None, valid)
    mesh = jax.make_mesh(axes, ("data", "sequence", "tensor"), axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        assert_close(values_and_gradients(FUSED, qkvs, scales, ids, None, valid), want)


@pytest.mark.slow
@pytest.mark.parametrize("family, config", ((Flux, FluxConfig.tiny()), (Flux2, Flux2Config.tiny())))
def test_a_transformer_with_references(family, config):
    """Both kinds of blocks, with plain references and with isolated ones."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    axes = len(config.axes_dim)
    base = ModelDef(lambda rngs: family(config, rngs=rngs))
    fused = ModelDef(lambda rngs: family(dataclasses.replace(config, attention="fused"), rngs=rngs))
    params = base.init(jax.random.key(0))
    txt, img, t = draw(2, 5, config.context_in_dim), draw(2, 12, config.in_channels), jnp.asarray([0.3, 0.8])
    ids = jnp.asarray(rng.integers(0, 9, (1, 12, axes)), jnp.float32)
    vector = draw(2, config.vec_in_dim) if family is Flux else None
    guidance = jnp.full(2, 4.0) if config.guidance_embed else None
    references = dict(
        ref_img=draw(2, 6, config.in_channels), ref_ids=ids[:, :6], ref_valid=jnp.asarray(rng.random((2, 6)) < 0.7)
    )

    def velocities(params, model):
        module = model(params)
        kept = module.keep(vector, guidance, **references)
        call = functools.partial(module, img, ids, txt, t, vector, guidance)
        return call(**references), call(kept=kept)

    found, want = (jax.jit(functools.partial(velocities, model=model))(params) for model in (fused, base))
    assert_close(found, want, share=1e-4)


@pytest.mark.parametrize("size", (1.0, 20.0))
def test_logits_beyond_float32s_exponents(size):
    """Large queries and keys, whose weights would overflow without the shift."""
    rng = np.random.default_rng(0)
    q, v = (jnp.asarray(rng.standard_normal((1, 1, 32, 16)), jnp.float32) for _ in range(2))
    q = size * q / jnp.linalg.norm(q, axis=-1, keepdims=True)
    k = q[:, :, ::-1]
    weights = jax.nn.softmax(jnp.einsum("bnlk,bnsk->bnls", q, k) * np.log(2), axis=-1)
    got = flash.flash_attention(q, k, v, jnp.float32(size**2), interpret=True)
    np.testing.assert_allclose(got, jnp.einsum("bnls,bnsk->blnk", weights, v)[:, :, 0], atol=2e-4, rtol=0)


def test_what_is_fused(monkeypatch):
    bias = jnp.zeros((1, 4))
    assert not dispatch.fuses("auto", 128, None)  # not a TPU
    assert dispatch.fuses("fused", 16, None)
    monkeypatch.setattr(dispatch, "platform", lambda: "tpu")
    for kind, want in (("TPU v6 lite", True), ("TPU v4", False)):
        monkeypatch.setattr(dispatch, "device_kind", lambda kind=kind: kind)
        assert dispatch.fuses("auto", 128, None) == want
        assert not any((dispatch.fuses("auto", 64, None), dispatch.fuses("auto", 128, bias)))
        assert not dispatch.fuses("auto", 128, None, dispatch.PairBias(bias[..., None], bias[..., None]))
        assert not dispatch.fuses("splash", 128, None)
