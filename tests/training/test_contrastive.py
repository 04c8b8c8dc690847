# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses against loops that say what they mean, and a small CSD that one of them trains."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uso_jax import params
from uso_jax.models.clip import ClipVisionConfig, unit
from uso_jax.models.csd import Csd
from uso_jax.training.objectives.contrastive import UNKNOWN, label_contrastive_loss, sigmoid_loss

N, D = 9, 6
SCALE, BIAS = 10.0, -3.0
LABELS = np.asarray([0, 1, 0, UNKNOWN, 2, 1, 0, UNKNOWN, 3], np.int32)  # 2 and 3 have no second sample


def draw(seed: int = 0, n: int = N) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def sigmoid_loop(image, text, positive) -> float:
    total = 0.0
    for i in range(len(image)):
        for j in range(len(text)):
            z = 1 if positive[i, j] else -1
            total -= math.log(1 / (1 + math.exp(-z * (SCALE * float(image[i] @ text[j]) + BIAS))))
    return total / len(image)


def label_loop(features, labels, temperature) -> float:
    score = lambda i, j: math.exp(float(np.float64(features[i]) @ np.float64(features[j])) / temperature)
    known = [i for i in range(len(labels)) if labels[i] != UNKNOWN]
    rows = []
    for i in known:
        positives = [j for j in known if j != i and labels[j] == labels[i]]
        if positives:
            total = sum(score(i, j) for j in known if j != i)
            rows.append(-sum(math.log(score(i, p) / total) for p in positives) / len(positives))
    return sum(rows) / len(rows)


# ---------------------------------------------------------------------------------------------------- sigmoid


def test_sigmoid_loss():
    image, text, captions = draw(0), draw(1), np.asarray([0, 1, 2, 0, 4, 5, 1, 0, 8])
    same = captions[:, None] == captions
    apart, shared = sigmoid_loop(image, text, np.eye(N)), sigmoid_loop(image, text, same)
    assert abs(apart - shared) > 1
    got = lambda same: float(jax.jit(sigmoid_loss)(*map(jnp.asarray, (image, text)), SCALE, BIAS, same))
    np.testing.assert_allclose(got(None), apart, rtol=1e-5)
    np.testing.assert_allclose(got(jnp.asarray(same)), shared, rtol=1e-5)
    # Its own text is a positive of each image, whether `same` says so or not.
    np.testing.assert_allclose(got(jnp.asarray(same & ~np.eye(N, dtype=bool))), shared, rtol=1e-5)


def test_sigmoid_loss_takes_pairs_in_any_order():
    image, text, order = draw(0), draw(1), np.random.default_rng(2).permutation(N)
    same = np.random.default_rng(3).random((N, N)) < 0.3
    want = sigmoid_loss(jnp.asarray(image), jnp.asarray(text), SCALE, BIAS, jnp.asarray(same))
    image, text, same = (jnp.asarray(x) for x in (image[order], text[order], same[order][:, order]))
    np.testing.assert_allclose(sigmoid_loss(image, text, SCALE, BIAS, same), want, rtol=1e-6)


def test_sigmoid_loss_has_finite_gradients_far_out():
    x = jnp.asarray(draw())
    grads = jax.grad(sigmoid_loss, argnums=(0, 1, 2, 3))(x, -x, jnp.asarray(3000.0), jnp.asarray(-10.0))
    assert all(jnp.isfinite(grad).all() and (grad != 0).any() for grad in grads)


# ---------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_label_contrastive_loss(temperature):
    features = draw()
    got = jax.jit(label_contrastive_loss)(jnp.asarray(features), jnp.asarray(LABELS), temperature)
    np.testing.assert_allclose(got, label_loop(features, LABELS, temperature), rtol=1e-5)


def test_unknown_labels_are_as_if_absent():
    features, known = draw(), LABELS != UNKNOWN
    loss = lambda x, labels: label_contrastive_loss(jnp.asarray(x), jnp.asarray(labels), 0.1)
    np.testing.assert_allclose(loss(features, LABELS), loss(features[known], LABELS[known]), rtol=1e-6)
    grads = jax.grad(label_contrastive_loss)(jnp.asarray(features), jnp.asarray(LABELS), 0.1)
    assert not grads[~known].any() and (jnp.abs(grads[known]).max(axis=1) > 0).all()


def test_label_contrastive_loss_takes_samples_in_any_order_and_labels_by_any_name():
    features, order = draw(), np.random.default_rng(2).permutation(N)
    want = label_contrastive_loss(jnp.asarray(features), jnp.asarray(LABELS), 0.1)
    names = np.where(LABELS == UNKNOWN, UNKNOWN, np.asarray([40, 7, 0, 3])[LABELS])
    got = label_contrastive_loss(jnp.asarray(features[order]), jnp.asarray(names[order]), 0.1)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("labels", [[UNKNOWN] * 4, [0, 1, 2, 3], [UNKNOWN, 0, 1, UNKNOWN], [0, *[UNKNOWN] * 3]])
def test_without_positives_there_is_nothing_to_learn(labels):
    loss, grads = jax.value_and_grad(label_contrastive_loss)(jnp.asarray(draw(n=4)), jnp.asarray(labels), 0.1)
    assert loss == 0 and not grads.any()


def test_gradients_are_finite_at_cold_temperatures():
    grads = jax.grad(label_contrastive_loss)(jnp.asarray(draw()), jnp.asarray(LABELS), 1e-3)
    assert jnp.isfinite(grads).all() and grads.any()


def test_bfloat16_embeddings_give_a_float32_loss():
    features = jnp.asarray(draw(), jnp.bfloat16)
    same = jnp.eye(N, dtype=bool)
    assert label_contrastive_loss(features, jnp.asarray(LABELS)).dtype == jnp.float32
    assert sigmoid_loss(features, features, SCALE, BIAS, same).dtype == jnp.float32


# ---------------------------------------------------------------------------------------------------- a small CSD


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 48])
def test_a_small_csd_learns_style(size):
    config = ClipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=size,
        patch_size=8,
        projection_dim=24,
    )
    structure = params.ModelDef(lambda rngs: Csd(config, rngs=rngs))
    weights = structure.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (4, size, size, 3))
    labels = jnp.asarray([0, 1, 0, 1])

    @jax.jit
    @jax.value_and_grad
    def step(weights):
        return label_contrastive_loss(structure(weights)(images).style, labels, 0.1)

    out = jax.jit(lambda weights: structure(weights)(images))(weights)
    assert out.feature.shape == (4, 64) and out.style.shape == out.content.shape == (4, 24)
    for head in (out.style, out.content):
        np.testing.assert_allclose(jnp.linalg.norm(head, axis=1), 1, rtol=1e-5)
    assert jnp.abs(out.style - out.content).max() > 0.1

    losses = []
    for _ in range(8):
        loss, grads = step(weights)
        losses.append(float(loss))
        weights = jax.tree.map(lambda w, g: w - 3e-3 * g, weights, grads)
    assert losses[-1] < 0.9 * losses[0]
    # The style loss reaches every layer but the content head, which it does not read.
    still = {path for path, grad in grads.items() if not jnp.abs(grad).max() > 0}
    assert still <= {"last_layer_content", "backbone/layers/self_attn/k_proj/bias"}
    assert "last_layer_content" in still


def test_a_batch_that_is_split_is_one_batch():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    features, labels = draw(n=8), LABELS[:8]
    split = lambda x: jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    whole = label_contrastive_loss(jnp.asarray(features), jnp.asarray(labels), 0.1)
    got = jax.jit(label_contrastive_loss)(split(features), split(labels), 0.1)
    np.testing.assert_allclose(got, whole, rtol=1e-6)
    image, text = unit(jnp.asarray(features)), unit(jnp.asarray(draw(1, n=8)))
    want = sigmoid_loss(image, text, SCALE, BIAS)
    np.testing.assert_allclose(jax.jit(sigmoid_loss)(split(image), split(text), SCALE, BIAS), want, rtol=1e-6)
