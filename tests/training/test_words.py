# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Alignment by words: style tokens are compared with the text tokens of the prompt, and nothing else is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from uso_jax.data.sources import open_source
from uso_jax.models.uso import USO
from uso_jax.training.objectives import words

B = 3


@functools.cache
def setting():
    """Return the stage, the system, the two networks' parameters, and a batch of features."""
    config = tiny.config("style_alignment", loss="words", reward=None)
    system = USO(config.system)
    rng = np.random.default_rng(0)
    names = [path for path in system.shapes if "/feature_embedder/" in path or "/txt_in/" in path]
    params = {path: jnp.asarray(rng.standard_normal(system.shapes[path].shape), jnp.float32) for path in names}
    rest = {path: jnp.zeros(s.shape, s.dtype) for path, s in system.shapes.items() if path not in params}
    c, text = config.system.transformer, config.system.text
    shapes = {
        "style_features": (B, 1, 3, c.projector.siglip_tokens, c.projector.siglip_dim),
        "txt": (B, text.num_tokens, text.txt_width),
        "vec": (B, text.vec_width),
    }
    batch = {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    batch |= {"style_valid": jnp.ones((B, 1), bool), "target": jnp.zeros((B, 16, 16, 3), jnp.uint8)}
    (stage,) = config.run_stages
    return stage, system, params, rest, batch


def loss_and_gradient(batch, **changes):
    stage, system, params, rest, _ = setting()
    stage = dataclasses.replace(stage, **changes)
    run = lambda params, batch: words.loss(rest | params, system, stage, batch, {})
    return jax.jit(jax.value_and_grad(run))(params, batch)


def errors(batch):
    """Return the squared differences [b, k, d] of style tokens and words, by the system's own networks."""
    _, system, params, rest, _ = setting()
    transformer = system.module(rest | params, "transformer")
    tokens, target = transformer.feature_embedder(batch["style_features"]), transformer.txt_in(batch["txt"])
    k = min(tokens.shape[1], target.shape[1])
    return np.asarray((tokens[:, :k] - target[:, :k]) ** 2)


def test_it_is_the_squared_difference_to_the_words():
    batch = setting()[-1]
    loss, gradient = loss_and_gradient(batch)
    assert errors(batch).shape[1] == batch["txt"].shape[1]  # tokens beyond the text's length have no word
    assert loss == pytest.approx(np.mean(errors(batch)), rel=1e-5)
    moved = {path for path, value in gradient.items() if np.any(value)}
    assert not any("txt_in" in path for path in moved)  # tokens are moved to words, not words to tokens
    assert {path for path in gradient if "feature_embedder" in path} == moved


def test_free_tokens_are_left_alone():
    _, system, params, rest, batch = setting()
    free = 2
    tokens = system.module(rest | params, "transformer").feature_embedder(batch["style_features"])
    loss, _ = loss_and_gradient(batch, free_tokens=free)
    assert tokens.shape[1] - free < batch["txt"].shape[1]
    assert loss == pytest.approx(np.mean(errors(batch)[:, : tokens.shape[1] - free]), rel=1e-5)


def test_an_example_without_a_style_image_counts_as_zero():
    batch = setting()[-1]
    valid = np.array([[False], [True], [True]])
    loss, _ = loss_and_gradient(batch | {"style_valid": jnp.asarray(valid)})
    assert loss == pytest.approx(np.mean(np.mean(errors(batch), axis=(1, 2)) * valid[:, 0]), rel=1e-5)


def test_drawings_can_be_captioned_by_their_style():
    describe = lambda captions: open_source(
        {"name": "procedural", "size": 16}, dict(tasks={"style": 1.0}, captions=captions)
    )[3]
    style, image = describe("style"), describe("style_image")
    assert style.prompt == f"this, {style.meta['style'].words}"
    assert image.prompt.endswith(style.prompt.removeprefix("this")) and style.meta["style_subjects"][0] in image.prompt
    np.testing.assert_array_equal(style.target, describe("target").target)
