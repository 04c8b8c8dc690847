# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Regions of styles in a transformer equal a bias that is written out for every pair of tokens."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from comparison import relative
from plain_attention import plain

from uso_jax import params
from uso_jax.models.attention import dispatch
from uso_jax.models.attention.tpu import interpreted_splash
from uso_jax.models.flux import Flux, FluxConfig
from uso_jax.models.flux2 import Flux2, Flux2Config
from uso_jax.models.layers.regions import NOWHERE, Regions

ONE = dict(depth=1, depth_single_blocks=1)
FAMILIES = {"flux1": (Flux, FluxConfig.tiny(**ONE)), "flux2": (Flux2, Flux2Config.tiny(**ONE))}
BATCH, STYLE, TEXT, TARGET, REFERENCE, KEPT, STYLES = 2, 4, 3, 6, 5, 4, 2


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@functools.cache
def drawn(family: str):
    """Draw parameters, and what a step takes: two styles as tokens, one of which also owns part of the references."""
    module, config = FAMILIES[family]
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal((BATCH, *shape)).astype(np.float32)
    ids = lambda length: rng.integers(0, 9, (1, length, len(config.axes_dim))).astype(np.float32)
    std = lambda path, x: x.shape[-2] ** -0.5 if path.endswith("kernel") else 0.3
    shapes = params.shapes(lambda rngs: module(config, rngs=rngs))
    values = {path: (std(path, x) * rng.standard_normal(x.shape)).astype(np.float32) for path, x in shapes.items()}
    step = dict(
        img=draw(TARGET, config.in_channels), img_ids=ids(TARGET), txt=draw(TEXT, config.context_in_dim),
        timesteps=np.full(BATCH, 0.4, np.float32), style=draw(STYLE, config.hidden_size), style_bias=draw(STYLE),
        style_owner=np.asarray([[1, 1, 2, 2], [1, 1, 0, 0]]), ref_img=draw(REFERENCE, config.in_channels),
        ref_ids=ids(REFERENCE), ref_owner=np.asarray([[0, 0, 0, 2, 2], [0] * 5]),
    )  # fmt: skip
    if config.vec_in_dim:
        step |= dict(y=draw(config.vec_in_dim), guidance=np.full(BATCH, 3, np.float32))
    isolated = dict(ref_img=draw(KEPT, config.in_channels), ref_ids=ids(KEPT), ref_owner=np.asarray([[1, 1, 2, 2]] * 2))
    target, others = -np.abs(draw(TARGET, STYLES)), -np.abs(draw(STYLES + 1, STYLES))
    target[0, :3, 0] = NOWHERE
    others[:, 1, 1] = NOWHERE
    return values, step, isolated, Regions(target, others)


def run(family: str, implementation: str, kept: bool = False):
    module, config = FAMILIES[family]
    values, step, isolated, regions = drawn(family)
    structure = params.ModelDef(lambda rngs: module(dataclasses.replace(config, attention=implementation), rngs=rngs))

    @jax.jit
    def velocity(values, step, isolated, regions):
        model = structure(values)
        more = {"kept": model.keep(**isolated, regions=regions)} if kept else {}
        return model(**step, regions=regions, **more)

    return velocity(values, step, isolated, regions)


def written_out(family: str, queries: int, keys: int) -> np.ndarray:
    """Return the bias of every pair: tokens are styles, text, target, references and kept ones, or the latter alone."""
    _, step, isolated, regions = drawn(family)
    zeros = np.zeros((BATCH, TEXT + TARGET), int)
    owner = np.concatenate([step["style_owner"], zeros, step["ref_owner"], isolated["ref_owner"]], axis=1)[:, :keys]
    in_target = range(STYLE + TEXT, STYLE + TEXT + TARGET)
    if keys == KEPT:
        owner, in_target = isolated["ref_owner"], ()
    bias = np.zeros((BATCH, queries, keys), np.float32)
    for sample, query, key in np.ndindex(bias.shape):
        if style := owner[sample, key]:
            own = regions.others[sample, owner[sample, query]]
            weights = regions.target[sample, query - in_target[0]] if query in in_target else own
            bias[sample, query, key] = weights[style - 1]
    return bias


@functools.cache
def dense(family: str, kept: bool):
    """Run a step by softmax attention with the bias that is written out."""

    def attend(q, k, v, key_valid, key_bias, pair_bias, **_):
        bias = written_out(family, q.shape[1], k.shape[1]) + (0 if key_bias is None else key_bias[:, None])
        return plain(q, k, v, key_valid, jnp.asarray(bias))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "attention", attend)
        return run(family, "xla", kept)


@pytest.mark.parametrize(
    "family, implementation, kept",
    (
        ("flux1", "xla", False),
        pytest.param("flux1", "blockwise", False, marks=pytest.mark.slow),
        pytest.param("flux1", "splash", False, marks=pytest.mark.slow),
        ("flux2", "xla", True),
    ),
)
def test_regions_equal_a_bias_of_every_pair(monkeypatch, family, implementation, kept):
    monkeypatch.setattr(dispatch, "splash_attention", interpreted_splash)
    assert relative(run(family, implementation, kept), dense(family, kept)) < 2e-5


def test_regions_without_owners_are_refused():
    values, step, _, regions = drawn("flux1")
    module, config = FAMILIES["flux1"]
    step = {name: jnp.asarray(value) for name, value in step.items() if "owner" not in name}
    with pytest.raises(ValueError, match="owners"):
        params.ModelDef(lambda rngs: module(config, rngs=rngs))(values)(**step, regions=regions)
