# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Every attention kernel against an explicit softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_attention import inputs, plain

from uso_jax.models.attention import dispatch, tpu
from uso_jax.models.attention.dispatch import PairBias, attention
from uso_jax.models.attention.tpu import interpreted_splash

pytestmark = pytest.mark.usefixtures("cheap_compilation")


def xla(*args):
    return attention(*args, implementation="xla")


def blockwise(*args):
    return attention(*args, implementation="blockwise")


@pytest.mark.parametrize("masked", (False, True))
def test_xla(masked):
    q, k, v, valid = inputs(7, 11)
    valid = valid if masked else None
    np.testing.assert_allclose(xla(q, k, v, valid), plain(q, k, v, valid), atol=1e-5, rtol=0)


def test_invalid_keys_have_no_influence():
    q, k, v, valid = inputs(5, 9)
    loss = lambda k, v: jnp.square(xla(q, k, v, valid)).sum()
    for gradient in jax.grad(loss, argnums=(0, 1))(k, v):
        np.testing.assert_array_equal(gradient[~valid], 0)
    far = jnp.where(valid[:, :, None, None], k, 1e4), jnp.where(valid[:, :, None, None], v, 1e4)
    np.testing.assert_array_equal(xla(q, *far, valid), xla(q, k, v, valid))


# Lengths of one block, of blocks that are not full, and different for queries and keys.
@pytest.mark.parametrize("queries, keys", ((7, 11), (300, 300), (40, 600), (513, 20)))
@pytest.mark.parametrize("masked, biased", ((False, False), (True, False), (False, True), (True, True)))
def test_blockwise(queries, keys, masked, biased):
    q, k, v, valid = inputs(queries, keys)
    valid = valid if masked else None
    bias = jnp.asarray(np.random.default_rng(0).standard_normal(k.shape[:2]), jnp.float32) if biased else None
    cotangent = jnp.cos(jnp.arange(q.size, dtype=jnp.float32)).reshape(q.shape)

    def value_and_gradients(kernel):
        arguments = (q, k, v) if bias is None else (q, k, v, bias)
        value, pullback = jax.vjp(lambda q, k, v, bias=None: kernel(q, k, v, valid, bias), *arguments)
        return value, *pullback(cotangent)

    for got, want in zip(value_and_gradients(blockwise), value_and_gradients(xla), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()), rtol=0)


def test_blockwise_invalid_keys_have_no_influence():
    q, k, v, valid = inputs(300, 290)
    loss = lambda k, v: jnp.square(blockwise(q, k, v, valid)).sum()
    for gradient in jax.grad(loss, argnums=(0, 1))(k, v):
        np.testing.assert_array_equal(gradient[~valid], 0)


def test_blockwise_holds_no_whole_weights():
    q, k, v, _ = inputs(1024, 1024, heads=1)
    gradient = lambda kernel: jax.jit(jax.grad(lambda *qkv: kernel(*qkv).sum(), argnums=(0, 1, 2)))
    temporaries = lambda kernel: gradient(kernel).lower(q, k, v).compile().memory_analysis().temp_size_in_bytes
    whole = 4 * len(q) * 1024 * 1024
    assert temporaries(xla) > whole and temporaries(blockwise) < whole / 2


def test_many_keys_go_block_by_block_on_cpu():
    for keys, dtype, blocks in ((127, jnp.float32, False), (128, jnp.float32, True), (128, jnp.bfloat16, False)):
        q, k, v, _ = (x.astype(dtype) for x in inputs(4, keys))
        assert ("custom_vjp" in str(jax.make_jaxpr(attention)(q, k, v))) == blocks


# Lengths below one block, just over one, and different for queries and keys.
@pytest.mark.parametrize("queries, keys", ((5, 5), (129, 129), (40, 200)))
@pytest.mark.parametrize("masked", (False, True))
def test_splash(queries, keys, masked):
    q, k, v, valid = inputs(queries, keys, heads=1, width=128)
    valid = valid if masked else None
    np.testing.assert_allclose(interpreted_splash(q, k, v, valid), plain(q, k, v, valid), atol=1e-5, rtol=0)


def small_blocks(monkeypatch):
    """Reduce the kernel's block and part sizes to a quarter."""
    for name, most in (("_KEYS", 512), ("_PART", 128), ("_QUERIES", 256)):
        monkeypatch.setattr(tpu, name, most)


@pytest.mark.parametrize("length", (1, 77, 512, 640, 1024, 4800, 5120, 5824, 8704))
def test_blocks_hold_all_tokens_and_little_else(length):
    for most in (512, 1024, 2048):
        size = tpu.block_size(length, most)
        padded = -(-length // size) * size
        assert size % 128 == 0 and size <= most and padded // size == -(-length // most)
        assert padded - length < 128 * (padded // size)
        assert size % tpu.part_size(size) == 0 and tpu.part_size(size) % 128 == 0
    assert [tpu.part_size(size) for size in (128, 512, 1024, 1408, 2048)] == [128, 512, 512, 1408, 512]


# Two blocks of queries, in parts forward or not; two of keys in two or three parts, and three in four.
@pytest.mark.parametrize(
    "queries, keys, parted",
    (
        (129, 140, True),
        pytest.param(260, 700, False, marks=pytest.mark.slow),
        pytest.param(400, 1200, True, marks=pytest.mark.slow),
    ),
)
def test_splash_gradients(monkeypatch, queries, keys, parted):
    small_blocks(monkeypatch)
    monkeypatch.setattr(tpu, "_FEW_QUERIES", {jax.devices()[0].device_kind} if parted else set())
    # Not the sample with a single valid key: its true gradient of keys is 0, the difference of two equal large numbers.
    q, k, v, valid = (x[:2] for x in inputs(queries, keys, heads=1, width=128))
    loss = lambda kernel: lambda q, k, v: jnp.square(kernel(q, k, v, valid)).sum()
    got = jax.grad(loss(interpreted_splash), argnums=(0, 1, 2))(q, k, v)
    want = jax.grad(loss(plain), argnums=(0, 1, 2))(q, k, v)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()), rtol=0)


def test_splash_takes_many_blocks(monkeypatch):
    small_blocks(monkeypatch)
    q, k, v, valid = inputs(700, 900, heads=1, width=128)
    np.testing.assert_allclose(interpreted_splash(q, k, v, valid), plain(q, k, v, valid), atol=1e-5, rtol=0)


@pytest.mark.parametrize("masked", (False, True))
def test_cudnn_sorts_the_valid_keys_first(monkeypatch, masked):
    """Test everything but the cuDNN kernel; XLA replaces it and gets the same lengths."""
    real, seen = jax.nn.dot_product_attention, []

    def stand_in(*args, implementation, **options):
        seen.append((implementation, set(options)))
        return real(*args, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    q, k, v, valid = inputs(7, 11)
    valid = valid if masked else None
    got = attention(q, k, v, valid, implementation="cudnn")
    np.testing.assert_allclose(got, plain(q, k, v, valid), atol=1e-5, rtol=0)
    assert seen == [("cudnn", {"query_seq_lengths", "key_value_seq_lengths"} if masked else set())]


@pytest.mark.parametrize("implementation, width", (("xla", 16), ("blockwise", 16), ("cudnn", 16), ("splash", 128)))
def test_a_bias_of_pairs(monkeypatch, implementation, width):
    monkeypatch.setattr(dispatch, "splash_attention", interpreted_splash)
    q, k, v, valid = inputs(40, 150, heads=1, width=width)
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    far = jnp.where(jnp.arange(40)[None, :, None] % 3, 0.0, -1e3)  # some queries see nothing of the keys of one term
    pairs = PairBias(jnp.concatenate([draw(3, 40, 2), jnp.broadcast_to(far, (3, 40, 1))], -1), draw(3, 150, 3) ** 2)
    row = draw(3, 150)
    dense = jnp.einsum("blc,bsc->bls", *pairs) + row[:, None]
    got = attention(q, k, v, valid, row, pairs, implementation=implementation)
    np.testing.assert_allclose(got, plain(q, k, v, valid, dense), atol=2e-4 if width == 128 else 2e-5, rtol=0)
