# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One training step: what it changes, on one device or eight, in one piece or several, with conditions or without."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from comparison import relative
from training_steps import adam, batch, eight_devices, numbers, one_device, params, start, step, system

from uso_jax.models.components import placement_rules
from uso_jax.parallel import sharding
from uso_jax.training import optimizer
from uso_jax.training import step as train
from uso_jax.training.objectives import flow_matching

pytestmark = pytest.mark.slow  # compiles or runs whole programs

ADAPTERS, PROJECTOR = r"transformer/.*/processor/.*", r"transformer/feature_embedder/.*"
TRAINED = {  # stage: regex of the paths it must train
    "style_alignment": PROJECTOR,
    "disentanglement": ADAPTERS,
    "joint": rf"{ADAPTERS}|{PROJECTOR}",
}


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


# ---------------------------------------------------------------------------------------------------- stages


@pytest.mark.parametrize(("name", "isolated"), [*((name, "none") for name in TRAINED), ("joint", "all")])
def test_a_stage_changes_exactly_what_it_names(name, isolated):
    named = {path for path in system().shapes if re.fullmatch(TRAINED[name], path)}
    assert 0 < len(named) < len(system().shapes)
    # Without weight decay, only a gradient can move a parameter.
    state, metrics = step(name, ema_decay=0.75, weight_decay=0.0, isolated=isolated)
    assert set(state.params) == set(state.ema) == set(adam(state).mu) == set(adam(state).nu) == named
    assert [path for path in named if not np.asarray(adam(state).mu[path]).any()] == []
    assert [path for path in named if np.array_equal(state.params[path], numbers()[path])] == []
    assert np.isfinite([float(value) for value in metrics.values()]).all()
    assert int(state.step) == 1


def test_the_optimizer_holds_two_moments_and_counters():
    state, _ = start(*tiny.config("style_alignment").run_stages, one_device())
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert len(moments) == 2 * len(state.params)
    assert sum(leaf.size for leaf in moments) == 2 * sum(value.size for value in state.params.values())
    assert state.ema == {}


# ---------------------------------------------------------------------------------------------------- devices


@functools.cache
def velocity_loss_and_gradients(eight: bool):
    """Compute all three on one device or eight, with respect to the whole transformer."""
    (stage,) = tiny.config("joint").run_stages
    draws = flow_matching.draw(jax.random.key(0), system(), stage)
    mesh = eight_devices() if eight else one_device()
    placed = jax.device_put(numbers(), sharding.shardings(mesh, placement_rules(), system().shapes))
    assert (placed["transformer/single_blocks/linear2/kernel"].addressable_shards[0].data.size < 160 * 32) == eight

    def compute(params, batch, draws):
        inputs = system().inputs(params, batch, content=True, style=True)
        velocity = system().velocity(params, inputs, draws.noise, draws.t, stage.guidance)
        transformer = {path: value for path, value in params.items() if path.startswith("transformer/")}
        loss = lambda part: flow_matching.loss({**params, **part}, system(), stage, batch, draws)
        return velocity, *jax.value_and_grad(loss)(transformer)

    with jax.set_mesh(mesh):
        return jax.jit(compute)(placed, sharding.global_batch(mesh, batch()), draws)


def test_eight_devices_equal_one():
    velocity, loss, grads = velocity_loss_and_gradients(False)
    velocity_8, loss_8, grads_8 = velocity_loss_and_gradients(True)
    assert not velocity_8.sharding.is_fully_replicated
    errors = {path: relative(grads_8[path], grad) for path, grad in grads.items()}
    assert relative(velocity_8, velocity) < 1e-5
    assert relative(loss_8, loss) < 1e-5
    assert {path: error for path, error in errors.items() if not error < 1e-5} == {}


def test_parameters_and_moments_are_split_over_eight_devices():
    state, _ = start(*tiny.config("joint", ema_decay=0.5).run_stages, eight_devices())
    shards = lambda value: value.addressable_shards[0].data.shape
    up, down = (f"transformer/double_blocks/processor/qkv_lora1/{part}/kernel" for part in ("up", "down"))
    for tree in (state.params, state.ema, adam(state).mu, adam(state).nu):
        assert tree[up].shape == (1, 4, 96) and shards(tree[up]) == (1, 4, 12)
        assert tree[down].shape == (1, 32, 4) and shards(tree[down]) == (1, 8, 4)


# ---------------------------------------------------------------------------------------------------- optimizer


def test_two_micro_batches_equal_one_batch():
    # A large eps turns Adam into plain gradient descent at rate 1: parameters then differ only as gradients do.
    plain = dict(eps=1e4, learning_rate=1e4, weight_decay=0.0, clip_norm=1e9)
    whole, metrics = step(**plain)
    halves, metrics_2 = step(**plain, accumulate=2)
    errors = {path: relative(adam(halves).mu[path], mu) for path, mu in adam(whole).mu.items()}
    moved = {path: np.abs(np.asarray(value) - numbers()[path]).max() for path, value in whole.params.items()}
    differ = {path: np.abs(np.asarray(halves.params[path] - value)).max() for path, value in whole.params.items()}
    assert min(moved.values()) > 1e-5
    assert relative(metrics_2["loss"], metrics["loss"]) < 1e-6
    assert relative(metrics_2["grad_norm"], metrics["grad_norm"]) < 1e-6
    assert max(differ.values()) < 1e-6
    assert max(errors.values()) < 1e-5


def test_average_of_parameters():
    state, _ = step("joint", ema_decay=0.75, weight_decay=0.0)
    for path, average in state.ema.items():
        np.testing.assert_allclose(average, 0.75 * numbers()[path] + 0.25 * np.asarray(state.params[path]), rtol=1e-6)
    assert state.result is state.ema
    assert dataclasses.replace(state, ema={}).result is state.params


def updates(rates, steps=1, **changes):
    """Return the optimizer's updates of two equal parameters under equal gradients."""
    (stage,) = tiny.config("joint", **changes).run_stages
    transform, start = optimizer.make(stage, rates), {path: jnp.full((3,), 2.0) for path in rates}
    state, found = transform.init(start), []
    for _ in range(steps):
        update, state = transform.update({path: jnp.full((3,), 0.1) for path in rates}, state, start)
        found.append({path: float(value[0]) for path, value in update.items()})
    return found


def test_learning_rate_multipliers_scale_updates_and_decay():
    for decay in (0.0, 0.1):
        (update,) = updates({"a": 1.0, "b": 0.5}, learning_rate=1e-2, weight_decay=decay)
        # Adam's first step has size 1, and decoupled decay adds to it.
        assert update["a"] == pytest.approx(-1e-2 * (1 + 2.0 * decay), rel=1e-5)
        assert update["b"] == pytest.approx(0.5 * update["a"], rel=1e-6)


def test_warm_up_is_linear_then_constant():
    (stage,) = tiny.config("joint", learning_rate=1e-2, warmup_steps=4).run_stages
    rates = [float(optimizer.schedule(stage)(number)) for number in range(7)]
    assert rates == pytest.approx([0, 0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01], rel=1e-6)
    sizes = [-update["a"] for update in updates({"a": 1.0}, 7, learning_rate=1e-2, warmup_steps=4, weight_decay=0.0)]
    assert sizes == pytest.approx(rates, rel=1e-4)


def test_gradients_are_clipped_together():
    (stage,) = tiny.config("joint", clip_norm=1.0).run_stages
    transform = optimizer.make(stage, {"a": 1.0, "b": 1.0})
    grads = {"a": jnp.full((1,), 3.0), "b": jnp.full((1,), 4.0)}
    _, state = transform.update(grads, transform.init(grads), grads)
    is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)
    (found,) = filter(is_adam, jax.tree.leaves(state, is_leaf=is_adam))
    np.testing.assert_allclose([found.mu["a"][0], found.mu["b"][0]], [0.06, 0.08], rtol=1e-5)


def test_muon_moves_the_blocks_matrices_alike_in_all_directions():
    (stage,) = tiny.config("joint", optimizer="muon", learning_rate=1e-2, weight_decay=0.0).run_stages
    start = {path: jnp.asarray(value) for path, value in numbers().items() if path.startswith("transformer/")}
    rates = dict.fromkeys(start, 1.0)
    transform = optimizer.make(stage, rates)
    grads = {path: 1e-4 * jax.random.normal(jax.random.key(n), x.shape) for n, (path, x) in enumerate(start.items())}
    update, _ = jax.jit(transform.update)(grads, transform.init(start), start)
    for path, value in update.items():
        if "blocks/" in path and path.endswith("/kernel") and "mod" not in path:
            # Singular values are near 1, times 0.2 and the root of the longer side, but for what was almost 0.
            sizes = np.linalg.svd(np.asarray(value), compute_uv=False) / (1e-2 * 0.2 * max(value.shape[-2:]) ** 0.5)
            assert sizes.max() < 1.5 and np.mean(sizes > 0.5) > 0.9, path
        else:
            sizes = np.abs(value)[np.abs(grads[path]) > 1e-6] / 1e-2  # Nesterov's first step is a little longer than 1
            assert sizes.min() > 1 and sizes.max() < 1.05 * sizes.min() < 1.6, path


def test_muon_on_eight_devices_equals_one():
    changes = dict(optimizer="muon", weight_decay=0.01)
    alone, _ = step("joint", **changes)
    (stage,) = tiny.config("joint", **changes).run_stages
    state, frozen = start(stage, eight_devices())
    where = sharding.shardings(eight_devices(), placement_rules(), system().shapes)
    places = train.state_shardings(state, where)
    function = train.jit_train_step(system(), stage, stage.lr_multipliers(system().shapes), 0, places)
    state, _ = function(state, frozen, sharding.global_batch(eight_devices(), batch()))
    for path, value in alone.params.items():
        np.testing.assert_allclose(state.params[path], value, atol=0.02 * stage.learning_rate, err_msg=path)


# ---------------------------------------------------------------------------------------------------- dropout


@functools.cache
def loss_function(*conditions: str):
    (stage,) = tiny.config("joint", conditions=conditions).run_stages
    return jax.jit(lambda params, batch, draws: flow_matching.loss(params, system(), stage, batch, draws))


def loss(batch, conditions=("content", "style"), **drop):
    rates = dict.fromkeys(("text_dropout", "content_dropout", "style_dropout", "all_dropout", "clip_cut"), 0.0) | drop
    (stage,) = tiny.config("joint", **rates).run_stages
    return float(loss_function(*conditions)(params(), batch, flow_matching.draw(jax.random.key(0), system(), stage)))


@pytest.mark.parametrize("dropped", [("content",), ("style",), ("content", "style")])
def test_dropped_conditions_equal_absent_ones(dropped):
    absent = {f"{name}_valid": np.zeros_like(batch()[f"{name}_valid"]) for name in dropped}
    others = {name: 255 - batch()[name] for name in dropped}
    got = loss(batch(), **{f"{name}_dropout": 1.0 for name in dropped})
    assert got == loss(batch() | absent)
    assert got == loss(batch() | absent | others)
    left_out = tuple(name for name in ("content", "style") if name not in dropped)
    assert got == pytest.approx(loss(batch(), conditions=left_out), rel=1e-6)
    assert got != pytest.approx(loss(batch()), rel=1e-5)


def test_dropped_text_equals_the_empty_prompt():
    assert batch()["t5_ids"].any()
    empty = {name: np.broadcast_to(null, batch()[name].shape) for name, null in system().null_tokens.items()}
    assert loss(batch(), text_dropout=1.0) == loss(batch() | empty) != pytest.approx(loss(batch()), rel=1e-5)


def test_conditions_drop_independently_at_their_rates():
    rates = dict(text_dropout=0.1, content_dropout=0.25, style_dropout=0.5)
    (stage,) = tiny.config("joint", batch_size=10_000, **rates).run_stages
    draws = flow_matching.draw(jax.random.key(0), system(), stage)
    drops = [np.asarray(getattr(draws, f"drop_{name}")) for name in ("text", "content", "style")]
    # Four standard deviations of a rate estimated from 10,000 draws are at most 0.02.
    for drop, rate in zip(drops, rates.values(), strict=True):
        assert abs(drop.mean() - rate) < 0.02
    assert abs((drops[1] & drops[2]).mean() - 0.125) < 0.02


def test_conditions_drop_together():
    separately = dict.fromkeys(("text_dropout", "content_dropout", "style_dropout"), 1.0)
    assert loss(batch(), all_dropout=1.0) == loss(batch(), **separately)
    rates = dict(text_dropout=0.0, content_dropout=0.0, style_dropout=0.0, all_dropout=0.3)
    (stage,) = tiny.config("joint", batch_size=10_000, **rates).run_stages
    draws = flow_matching.draw(jax.random.key(0), system(), stage)
    text, content, style = (np.asarray(getattr(draws, f"drop_{name}")) for name in ("text", "content", "style"))
    assert (text == content).all() and (text == style).all()
    assert abs(text.mean() - 0.3) < 0.02


def test_a_cut_caption_tells_clip_its_beginning_only():
    cut = dict(batch()) | {"clip_ids": np.array(batch()["clip_ids"])}
    cut["clip_ids"][:, 3:] = system().null_tokens["clip_ids"][:-3]
    assert (cut["clip_ids"] != batch()["clip_ids"]).any()
    assert loss(batch(), clip_cut=1.0) == loss(cut) != pytest.approx(loss(batch()), rel=1e-6)
    empty = {name: np.broadcast_to(null, batch()[name].shape) for name, null in system().null_tokens.items()}
    assert loss(batch() | empty, clip_cut=1.0) == pytest.approx(loss(batch() | empty), rel=1e-6)
    (stage,) = tiny.config("joint", batch_size=10_000, clip_cut=0.3).run_stages
    chosen = np.asarray(flow_matching.draw(jax.random.key(0), system(), stage).cut_clip)
    assert abs(chosen.mean() - 0.3) < 0.02
