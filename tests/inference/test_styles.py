# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How a style image reaches the transformer: USO's projector, what it is compared with, and the autoencoder instead."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from uso_jax.common.errors import InputError
from uso_jax.models.projector import PROJECTORS, ProjectorConfig
from uso_jax.models.uso import USO


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


SIZES = ProjectorConfig(siglip_tokens=5, style_tokens=2, siglip_dim=8)


def project(kind: str, features):
    sizes = dataclasses.replace(SIZES, kind=kind)
    made = jax.jit(lambda features: PROJECTORS[kind](sizes, 12, dtype=jnp.float32, rngs=nnx.Rngs(0))(features))
    return sizes, made(features)


@pytest.mark.parametrize("kind", PROJECTORS)
def test_tokens_of_each_image_follow_each_other(kind):
    features = jax.random.normal(jax.random.key(0), (2, 3, 3, SIZES.siglip_tokens, SIZES.siglip_dim))
    sizes, tokens = project(kind, features)
    assert tokens.shape == (2, 3 * sizes.tokens_per_image, 12)
    alone = jnp.concatenate([project(kind, features[:, i : i + 1])[1] for i in range(3)], axis=1)
    np.testing.assert_allclose(tokens, alone, atol=4e-6 if kind == "level_resampler" else 1e-6)  # it has more layers


@pytest.mark.parametrize("kind", PROJECTORS)
def test_which_ones_read_all_levels(kind):
    features = jax.random.normal(jax.random.key(0), (1, 1, 3, SIZES.siglip_tokens, SIZES.siglip_dim))
    noise = jax.random.normal(jax.random.key(1), features.shape)
    tokens = jax.jit(lambda features: project(kind, features)[1])
    change = lambda level: jnp.max(jnp.abs(tokens(features.at[:, :, level].add(noise[:, :, level])) - tokens(features)))
    assert [float(change(level)) > 1e-4 for level in range(3)] == [
        True,
        *[kind in ("hierarchical", "level_resampler")] * 2,
    ]


def test_unknown_kinds():
    with pytest.raises(ValueError, match=r"'conv'; .* hierarchical, resampler, mlp, level_resampler"):
        dataclasses.replace(SIZES, kind="conv")
    with pytest.raises(InputError, match="style_encoder 'clip' is unknown; known are siglip, autoencoder"):
        tiny.config("disentanglement", changes={"model.style_encoder": "clip"})


def inputs(style_encoder: str, **changes):
    config = tiny.config("disentanglement", changes={"model.style_encoder": style_encoder})
    system = USO(config.system)
    params = tiny.drawn(system)
    rng = np.random.default_rng(0)
    side = config.system.siglip.image_size
    batch = {
        "target": rng.integers(0, 255, (2, 16, 16, 3), np.uint8),
        "content": rng.integers(0, 255, (2, 16, 16, 3), np.uint8),
        "content_valid": np.asarray([True, False]),
        "style": rng.integers(0, 255, (2, 2, side, side, 3), np.uint8),
        "style_valid": np.asarray([[True, False], [True, True]]),
    }
    batch |= {name: np.stack([tokens] * 2) for name, tokens in system.null_tokens.items()} | changes
    return system, params, {name: jnp.asarray(value) for name, value in batch.items()}


@pytest.mark.slow
def test_one_encoder_for_both_references():
    system, params, batch = inputs("autoencoder")
    found = jax.jit(lambda p, b: system.inputs(p, b, content=True, style=True))(params, batch)
    encode = jax.jit(system.encode_images)
    content, style = encode(params, batch["content"]), encode(params, batch["style"][:, 1])
    n, m = content.shape[1], style.shape[1]
    assert found.features is None and found.ref_img.shape[1] == n + 2 * m
    np.testing.assert_allclose(found.ref_img[:, :n], content, atol=1e-5)
    np.testing.assert_allclose(found.ref_img[:, n + m :], style, atol=1e-5)
    np.testing.assert_array_equal(found.ref_valid[0], [True] * (n + m) + [False] * m)
    np.testing.assert_array_equal(found.ref_valid[1], [False] * n + [True] * 2 * m)
    # Each lies diagonally after the one before.
    starts = np.asarray(found.ref_ids[0, [0, n, n + m], 1:])
    assert (np.diff(starts, axis=0) > 0).all()


@pytest.mark.slow
def test_absent_styles_do_nothing():
    system, params, batch = inputs("autoencoder")
    other = dict(batch, style=255 - batch["style"])
    shape = jax.eval_shape(system.encode_images, params, batch["target"]).shape
    x = jax.random.normal(jax.random.key(1), shape)

    @jax.jit
    def velocity(params, batch):
        return system.velocity(params, system.inputs(params, batch, content=True, style=True), x, jnp.full(2, 0.5), 1.0)

    hidden = {"style_valid": jnp.zeros((2, 2), bool)}
    np.testing.assert_allclose(velocity(params, batch | hidden), velocity(params, other | hidden), atol=1e-6)
    assert float(jnp.max(jnp.abs(velocity(params, batch) - velocity(params, other)))) > 1e-3
