# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""FLUX.2's networks and formulas against values recorded from the original torch implementation."""

import functools

import einops
import golden_flux2 as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from comparison import DENOISED, ENCODER, VELOCITY, error
from golden_files import nhwc
from golden_flux2 import CASES, CONFIG, MODELS, arrays

from uso_jax import flow


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@functools.cache
def model(name: str):
    return golden.transformer(name)


@functools.cache
def step(name: str, num_references: int):
    """Return the compiled velocity (x, t, txt) -> v with plain references."""
    network, conditions = model(name), golden.references(num_references)
    return jax.jit(lambda x, t, txt: golden.velocity(network, x, t, txt, **conditions))


@functools.cache
def isolated(num_references: int):
    """Return the compiled velocity (x, t, kept) -> v, and the kept references."""
    network = model("klein")
    run = jax.jit(lambda x, t, kept: golden.velocity(network, x, t, kept=kept))
    return run, jax.jit(lambda: golden.keep(network, num_references))()


def inputs():
    return jnp.asarray(arrays()["img_tokens"]), jnp.asarray(CONFIG["sampling"]["t"], jnp.float32)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MODELS)
def test_velocity(name, case):
    got = step(name, CASES[case])(*inputs(), jnp.asarray(arrays()["txt"]))
    assert error(got, arrays()[f"{name}_velocity_{case}"]) < VELOCITY


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MODELS)
def test_denoised(name, case):
    if f"{name}_denoised_{case}" not in arrays():
        pytest.skip("this case was recorded with classifier-free guidance")
    txt = jnp.asarray(arrays()["txt"])
    got = golden.denoise(lambda x, t: step(name, CASES[case])(x, t, txt))
    assert error(got, arrays()[f"{name}_denoised_{case}"]) < DENOISED


def test_classifier_free_guidance():
    g, run = arrays(), step("klein", 1)
    txt, negative = jnp.asarray(g["txt"]), jnp.asarray(g["negative_txt"])
    scale = jnp.full((2,), CONFIG["sampling"]["guidance"], jnp.float32)
    got = golden.denoise(lambda x, t: flow.guide(run(x, t, txt), run(x, t, negative), scale))
    assert error(got, g["klein_denoised_one_ref_cfg"]) < DENOISED


@pytest.mark.parametrize("count", (1, 2))
def test_isolated_references(count):
    run, kept = isolated(count)
    first = jnp.full((2,), arrays()["denoise_timesteps"][0], jnp.float32)
    assert error(run(inputs()[0], first, kept), arrays()[f"klein_kv_velocity_first_{count}_refs"]) < VELOCITY
    got = golden.denoise(lambda x, t: run(x, t, kept))
    assert error(got, arrays()[f"klein_kv_denoised_{count}_refs"]) < DENOISED


@pytest.mark.skipif(not golden.HAS_AUTOENCODER, reason="this golden directory has no autoencoder")
def test_autoencoder():
    g, ae = arrays(), golden.autoencoder()
    rows, columns = golden.grid(g["ae_latent"])
    tokens = einops.rearrange(g["ae_latent"], "b c h w -> b (h w) c")
    run = jax.jit(lambda image, z: (ae.raw_moments(image), flow.pack(ae.encode(image)), ae.decode(z)))
    moments, latent, decoded = run(nhwc(g["ae_image"]), flow.unpack(jnp.asarray(tokens), rows, columns))
    assert error(moments, nhwc(g["ae_moments"])) < ENCODER
    assert error(latent, tokens) < ENCODER
    assert error(decoded, nhwc(g["ae_decoded"])) < ENCODER


def test_position_ids():
    g, size = arrays(), golden.grid(arrays()["noise"])
    np.testing.assert_array_equal(flow.layered_ids(*size), g["img_ids"][0])
    np.testing.assert_array_equal(model("klein").text_ids(g["txt"].shape[1])[0], g["txt_ids"][0])
    ids = flow.layered_reference_ids(size, [golden.grid(g[f"ref_latent_{i}"]) for i in (0, 1)])
    for i in (0, 1):
        np.testing.assert_array_equal(ids[i], g[f"ref_ids_{i}"][0])


def test_tokens():
    for latent, tokens in (("noise", "img_tokens"), ("ref_latent_0", "ref_tokens_0"), ("ref_latent_1", "ref_tokens_1")):
        latent, tokens = arrays()[latent], jnp.asarray(arrays()[tokens])
        whole = flow.unpack(tokens, *golden.grid(latent))
        np.testing.assert_array_equal(whole, einops.rearrange(latent, "b (z p q) h w -> b (h p) (w q) z", p=2, q=2))
        np.testing.assert_array_equal(flow.pack(whole), tokens)


def test_schedules():
    found = 0
    for name, want in arrays().items():
        if name.startswith(("schedule_", "mu_")):
            kind, steps, tokens = name.split("_")
            formula = flow.empirical_schedule if kind == "schedule" else lambda n, length: flow.empirical_mu(length, n)
            np.testing.assert_allclose(formula(int(steps), int(tokens)), want, atol=1e-6, rtol=0)
            found += 1
    assert found >= 4
    sampling = CONFIG["sampling"]
    tokens = sampling["height"] * sampling["width"] // 16**2
    got = flow.empirical_schedule(sampling["denoise_steps"], tokens)
    np.testing.assert_allclose(got, arrays()["denoise_timesteps"], atol=1e-6, rtol=0)
