# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Optimizers and learning rates by name: what each update is, and where its state lies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from uso_jax.common.errors import InputError
from uso_jax.parallel import sharding
from uso_jax.training import optimizer
from uso_jax.training.stage import OPTIMIZERS, SCHEDULES, StageConfig
from uso_jax.training.step import describe_state, init_state, state_shardings

STAGE = StageConfig("any", steps=100, warmup_steps=0, weight_decay=0.0, learning_rate=0.1, clip_norm=1e9)
FAST, SLOW, FIXED = "fast/kernel", "slow/kernel", "fixed/kernel"
MULTIPLIERS = {FAST: 1.0, SLOW: 0.5, FIXED: 0.0}


def parameters(shape: tuple[int, ...] = (2, 16, 24)) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path in MULTIPLIERS}


def gradients(params) -> dict[str, jax.Array]:
    """The gradient of half the squared distance to 1, and of the same for every parameter."""
    return jax.tree.map(lambda x: x - 1, params)


def run(stage: StageConfig, steps: int):
    transform, params = optimizer.make(stage, MULTIPLIERS), parameters()

    def step(_, carry):
        params, state, ema = carry
        updates, state = transform.update(gradients(params), state, params)
        params = optax.apply_updates(params, updates)
        return params, state, optimizer.average(stage, ema, params, state)

    run = jax.jit(lambda: jax.lax.fori_loop(0, steps, step, (params, transform.init(params), params)))
    params, _, ema = run()
    return params, ema


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_at_the_rate_of_each_parameter(name):
    stage = dataclasses.replace(STAGE, optimizer=name, learning_rate=1.0 if name == "prodigy" else 0.02)
    params, average = run(stage, 300 if name == "prodigy" else 30)  # it begins at a rate of 1e-6
    found = average if stage.keeps_average else params
    distance = {path: float(jnp.abs(found[path] - 1).mean() / jnp.abs(parameters()[path] - 1).mean()) for path in found}
    assert distance[FAST] < distance[SLOW] < distance[FIXED] == pytest.approx(1, abs=1e-6)
    assert distance[FAST] < 0.95


def test_lion_moves_by_the_sign_of_the_gradient():
    params, _ = run(dataclasses.replace(STAGE, optimizer="lion"), 1)
    moved = np.asarray(params[FAST] - parameters()[FAST])
    np.testing.assert_allclose(moved, -0.1 * np.sign(gradients(parameters())[FAST]), atol=1e-6)


def test_adafactor_moves_by_the_rate_and_factors_its_second_moment():
    stage = dataclasses.replace(STAGE, optimizer="adafactor", learning_rate=0.01)
    params, _ = run(stage, 1)
    moved = np.asarray(params[FAST] - parameters()[FAST])
    # Clipped to a root mean square of the rate, whatever the size of the parameter.
    assert float(np.sqrt(np.mean(moved**2))) == pytest.approx(0.01, rel=0.02)
    state = optimizer.make(stage, MULTIPLIERS).init(parameters((2, 160, 136)))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 3 * (2 * 160 + 2 * 136 + 8)


def test_weight_decay_is_decoupled_and_follows_the_rate():
    zero = jax.tree.map(jnp.zeros_like, parameters())
    for name in ("adamw", "adafactor", "lion"):
        stage = dataclasses.replace(STAGE, optimizer=name, weight_decay=0.5)
        transform = optimizer.make(stage, MULTIPLIERS)
        updates, _ = transform.update(zero, transform.init(parameters()), parameters())
        np.testing.assert_allclose(updates[SLOW], -0.5 * 0.1 * 0.5 * parameters()[SLOW], rtol=1e-5, err_msg=name)


def test_schedule_free_validates_the_average_of_its_iterates():
    stage = dataclasses.replace(STAGE, optimizer="schedule_free", betas=(0.9, 0.999))
    params, average = run(stage, 1)
    # After the first step x = z, so that gradients are taken there as well.
    np.testing.assert_allclose(average[FAST], params[FAST], atol=1e-5)
    params, average = run(stage, 12)
    assert float(jnp.abs(params[FAST] - average[FAST]).max()) > 1e-3
    with pytest.raises(InputError, match="schedule_free replaces decay and ema_decay"):
        dataclasses.replace(stage, ema_decay=0.9)
    with pytest.raises(InputError, match="schedule_free replaces decay and ema_decay"):
        dataclasses.replace(stage, decay="cosine")


@pytest.mark.parametrize("name", ("adafactor", "prodigy", "schedule_free"))
def test_a_state_lies_where_its_parameters_lie(name):
    stage, shape = dataclasses.replace(STAGE, optimizer=name), (2, 160, 136)
    mesh = sharding.make_mesh({"fsdp": 4, "data": 2})
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp", None))
    placed = dict.fromkeys(MULTIPLIERS, split)
    state = init_state(stage, MULTIPLIERS, jax.device_put(parameters(shape), placed), placed)
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.is_equivalent_to(
            split if leaf.shape == shape else NamedSharding(mesh, PartitionSpec()), leaf.ndim
        )
    described = state_shardings(describe_state(stage, MULTIPLIERS, parameters(shape)), placed)
    assert jax.tree.structure(described) == jax.tree.structure(state)
    assert set(state.ema) == (set(MULTIPLIERS) if name == "schedule_free" else set())


# ---------------------------------------------------------------------------------------------------- learning rate


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rates(name):
    stage = dataclasses.replace(STAGE, decay=name, warmup_steps=20, learning_rate=1.0)
    rate = lambda step: float(optimizer.schedule(stage)(step))
    assert [rate(0), rate(10), rate(20)] == pytest.approx([0.0, 0.5, 1.0])
    middle, end = {
        "constant": (1.0, 1.0),
        "linear": (0.5, 0.0),
        "cosine": (0.5, 0.0),
        "polynomial": (0.25, 0.0),
        "cosine_restarts": (1.0, 0.0),
    }[name]
    assert [rate(60), rate(100)] == pytest.approx([middle, end], abs=1e-6)


def test_a_cosine_begins_again_after_equal_shares():
    stage = dataclasses.replace(STAGE, decay="cosine_restarts", restarts=3, learning_rate=1.0)
    rate = lambda step: float(optimizer.schedule(stage)(step))
    assert [rate(step) for step in (0, 25, 50, 75)] == pytest.approx([1.0] * 4)
    assert max(rate(step) for step in (24, 49, 74, 99)) < 0.01
    once = dataclasses.replace(stage, restarts=0)
    assert float(optimizer.schedule(once)(50)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(optimizer="adam8"), "optimizer must be one of adamw, muon"),
        (dict(decay="step"), "decay must be one of constant, linear"),
        (dict(decay="cosine_restarts", restarts=100), "restarts must be from 0 to steps - 1, not 100"),
        (dict(timesteps="beta"), "timesteps must be one of uniform, logit_normal"),
        (dict(loss_weight="snr"), "loss_weight must be one of none, cosmap"),
        (dict(timestep_std=0.0), "timestep_std must be positive"),
        (dict(mode_scale=2.0), "mode_scale from -1 to 1.75"),
        (dict(huber=-1.0), "huber 0 or positive"),
    ],
)
def test_values_that_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(STAGE, **values)
