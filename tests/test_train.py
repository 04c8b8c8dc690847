# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One training step: what it changes, on one device or eight, in one piece or several, with conditions or without."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from uso_jax import flow, objective, sharding, train
from uso_jax.data.pipeline import batches, open_source
from uso_jax.heldout import pipeline_options
from uso_jax.system import System

ADAPTERS, PROJECTOR = r"transformer/.*/processor/.*", r"transformer/feature_embedder/.*"
TRAINED = {  # stage: (paths it trains, paths it must not)
    "base": (r"transformer/.*", f"{ADAPTERS}|{PROJECTOR}"),
    "style_alignment": (PROJECTOR, "nothing"),
    "disentanglement": (ADAPTERS, "nothing"),
    "joint": (f"{ADAPTERS}|{PROJECTOR}", "nothing"),
}


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(tmp_path_factory):
    yield from tiny.compile_cheaply(tmp_path_factory.mktemp("compiled"))


@functools.cache
def system() -> System:
    return System(tiny.config("joint").system)


@functools.cache
def numbers() -> dict[str, np.ndarray]:
    """Draw every parameter: at their initial values, norm scales are all 1 and LoRA's `up` is 0."""
    rng = np.random.default_rng(0)
    drawn = {path: rng.normal(0, 0.1, shape.shape).astype(np.float32) for path, shape in system().shapes.items()}
    codec = drawn["autoencoder/basis"]
    # The codec divides by its scale.
    return drawn | {"autoencoder/basis": np.eye(*codec.shape, dtype=np.float32), "autoencoder/scale": np.ones(16, np.float32)}


def params() -> dict[str, jax.Array]:
    return {path: jnp.asarray(value) for path, value in numbers().items()}


@functools.cache
def batch(name: str = "joint") -> dict[str, np.ndarray]:
    config = tiny.config(name)
    stage = config.stages[0]
    stream = batches(
        open_source(config.data.train, stage.tasks), batch_size=8, seed=0, **pipeline_options(config, stage)
    )
    return next(iter(stream))


def one_device():
    return sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])


def run(name: str = "joint", steps: int = 1, **changes):
    """Train from `numbers` on one device; give the state before and after, and the last metrics."""
    (stage,) = tiny.config(name, **changes).stages
    rates = stage.rates(system().shapes)
    where = sharding.shardings(one_device(), sharding.RULES, system().shapes)
    before = train.init_state(stage, rates, {path: params()[path] for path in rates}, where)
    frozen = {path: value for path, value in params().items() if path not in rates}
    step = jax.jit(train.make_train_step(system(), stage, rates, seed=0))
    after = before
    for _ in range(steps):
        after, metrics = step(after, frozen, batch(name))
    return before, after, metrics


def adam(state) -> optax.ScaleByAdamState:
    leaves = jax.tree.leaves(state.opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
    (found,) = (leaf for leaf in leaves if isinstance(leaf, optax.ScaleByAdamState))
    return found


def relative(got, want) -> float:
    """Give the largest error, relative to the largest number that is wanted."""
    got, want = np.asarray(got), np.asarray(want)
    return float(np.abs(got - want).max() / np.abs(want).max())


# ---------------------------------------------------------------------------------------------------- stages


@pytest.mark.parametrize("name", TRAINED)
def test_a_stage_changes_exactly_what_it_names(name):
    yes, no = TRAINED[name]
    named = {path for path in system().shapes if re.fullmatch(yes, path) and not re.fullmatch(no, path)}
    assert 0 < len(named) < len(system().shapes)
    # Without decay, only a gradient can move a parameter.
    _, after, metrics = run(name, ema_decay=0.5, weight_decay=0.0)
    assert set(after.params) == set(after.ema) == set(adam(after).mu) == set(adam(after).nu) == named
    moments = {leaf.size for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim}
    assert moments == {after.params[path].size for path in named}
    assert [path for path in named if np.array_equal(after.params[path], numbers()[path])] == []
    assert [path for path in named if not np.asarray(adam(after).nu[path]).any()] == []
    assert np.isfinite([float(value) for value in metrics.values()]).all()


def test_the_optimizer_holds_nothing_else():
    before, _, _ = run("style_alignment", steps=0) if False else _initial("style_alignment")
    sizes = sum(leaf.size for leaf in jax.tree.leaves(before.opt_state))
    counters = sum(leaf.ndim == 0 for leaf in jax.tree.leaves(before.opt_state))
    assert sizes == 2 * sum(value.size for value in before.params.values()) + counters
