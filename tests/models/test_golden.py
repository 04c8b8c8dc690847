# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Every network and formula against values recorded from the original torch implementation."""

import functools

import golden_files as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import DENOISED, ENCODER, VELOCITY, error
from golden_files import CASES, CONFIG, arrays, nhwc

from uso_jax import flow
from uso_jax.models.layers.embeddings import timestep_embedding

pytestmark = pytest.mark.usefixtures("cheap_compilation")


@functools.cache
def model():
    return golden.flux()


@functools.cache
def features():
    tower = golden.siglip()
    return {i: golden.style_features(i, tower) for i in (0, 1)}


@pytest.mark.parametrize("case", CASES)
def test_velocity(case):
    assert error(golden.velocity(model(), case, features=features()), arrays()[f"velocity_{case}"]) < VELOCITY


@pytest.mark.parametrize("case", CASES)
def test_denoised(case):
    g = arrays()
    times = jnp.asarray(g["denoise_timesteps"], jnp.float32)
    step = jax.jit(lambda x, t: golden.velocity(model(), case, x, t, features=features()))
    tokens = flow.integrate(step, flow.pack(nhwc(g["noise"])), times)
    assert error(flow.unpack(tokens, *golden.token_grid(g["noise"])), nhwc(g[f"denoised_{case}"])) < DENOISED


def test_denoise_timesteps():
    sampling = CONFIG["sampling"]
    want = arrays()["denoise_timesteps"]
    got = flow.schedule(sampling["denoise_steps"], sampling["height"], sampling["width"], "upstream")
    np.testing.assert_allclose(got, want, atol=1e-6, rtol=0)


def test_siglip():
    out = golden.siglip()(nhwc(arrays()["style_pixels_0"]), hidden_states=tuple(CONFIG["projector"]["layers"]))
    for i, layer in enumerate(CONFIG["projector"]["layers"]):
        assert error(out.hidden_states[:, i], arrays()[f"siglip_hidden_{layer}"]) < ENCODER
    assert error(out.last_hidden_state, arrays()["siglip_last"]) < ENCODER
    assert error(out.pooler_output, arrays()["siglip_pooled"]) < ENCODER


def test_style_tokens():
    assert error(model().feature_embedder(features()[0]), arrays()["style_tokens_0"]) < ENCODER


@pytest.mark.skipif(not golden.HAS_AUTOENCODER, reason="this golden directory has no autoencoder")
def test_autoencoder():
    g, ae = arrays(), golden.autoencoder()
    image = nhwc(g["ae_image"])
    assert error(ae.encoder(image), nhwc(g["ae_moments"])) < ENCODER
    assert error(ae.encode(image), nhwc(g["ae_latent_mean_scaled"])) < ENCODER
    assert error(ae.decode(nhwc(g["ae_z"])), nhwc(g["ae_decoded"])) < ENCODER


@pytest.mark.skipif(not golden.HAS_AUTOENCODER, reason="this golden directory has no autoencoder")
def test_autoencoder_samples_the_posterior():
    ae = golden.autoencoder()
    image = jnp.repeat(nhwc(arrays()["ae_image"]), 64, axis=0)
    _, logvar = jnp.split(nhwc(arrays()["ae_moments"]), 2, axis=-1)
    samples = ae.encode(image, jax.random.key(0))
    scaled = (samples - ae.encode(image[:1])) / (ae.config.scale_factor * jnp.exp(0.5 * logvar))
    assert abs(float(scaled.mean())) < 0.05 and abs(float(scaled.std()) - 1) < 0.05


def test_position_ids():
    g = arrays()
    grid = golden.token_grid(g["noise"])
    np.testing.assert_array_equal(flow.position_ids(*grid), g["img_ids"][0])
    for mode in "dhwo":
        ids = flow.reference_ids(grid, [golden.token_grid(g[f"ref_latent_{i}"]) for i in (0, 1)], mode)
        for i in (0, 1):
            np.testing.assert_array_equal(ids[i], g[f"ref_ids_{mode}_{i}"][0])


def test_packing():
    g = arrays()
    np.testing.assert_array_equal(flow.pack(nhwc(g["noise"])), g["img_tokens"])
    for i in (0, 1):
        np.testing.assert_array_equal(flow.pack(nhwc(g[f"ref_latent_{i}"])), g[f"ref_tokens_{i}"])
    np.testing.assert_array_equal(
        flow.unpack(jnp.asarray(g["img_tokens"]), *golden.token_grid(g["noise"])), nhwc(g["noise"])
    )


def test_schedules():
    found = 0
    for name, want in arrays().items():
        if name.startswith("schedule_"):
            _, shift, steps, size = name.split("_")
            height, width = map(int, size.split("x"))
            np.testing.assert_allclose(flow.schedule(int(steps), height, width, shift), want, atol=1e-6, rtol=0)
            found += 1
    assert found >= 2


def test_timestep_embedding():
    got = timestep_embedding(jnp.asarray(arrays()["timestep_embedding_t"], jnp.float32))
    np.testing.assert_allclose(got, arrays()["timestep_embedding"], atol=1e-5, rtol=0)
