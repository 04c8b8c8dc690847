# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The guidance loss: what it asks for, and what carries its gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.flatten_util import ravel_pytree

from uso_jax import flow
from uso_jax.data.loader import batches
from uso_jax.data.sources import open_source
from uso_jax.models.uso import USO
from uso_jax.training.objectives import flow_matching, guidance
from uso_jax.training.validation import pipeline_options

pytestmark = pytest.mark.slow  # compiles or runs whole programs

RATES = dict(text_dropout=0.0, content_dropout=0.0, style_dropout=0.0, all_dropout=0.0)


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@functools.cache
def setting():
    """Return configuration, system, non-zero parameters and a batch."""
    config = tiny.config("joint", loss="guidance", **RATES)
    system = USO(config.system)
    params = tiny.drawn(system)
    rng = np.random.default_rng(1)
    for path in (path for path in params if path.startswith("transformer/")):
        noise = 0.1 * rng.standard_normal(params[path].shape).astype(np.float32)
        params[path] = jnp.asarray(np.asarray(params[path]) + noise)
    (stage,) = config.run_stages
    options = pipeline_options(config, stage)
    stream = batches(open_source(config.data.train, stage.data), batch_size=stage.batch_size, seed=0, **options)
    return stage, system, params, jax.tree.map(jnp.asarray, dict(next(iter(stream))))


@functools.cache
def compiled():
    """Return programs that several tests use: the encoded batch, velocities, inputs without conditions."""
    stage, system, *_ = setting()
    encode = jax.jit(lambda params, batch: flow_matching.encode(params, system, stage, batch))
    velocity = jax.jit(system.velocity)
    without = jax.jit(lambda params, inputs: guidance.without(params, system, inputs))
    at = lambda params, inputs, x_t, t, scale: velocity(params, inputs, x_t, t, jnp.full_like(t, scale))
    return encode, at, without


def loss_of(objective, stage, drawn):
    _, system, params, batch = setting()
    return jax.jit(lambda *args: objective.loss(args[0], system, stage, *args[1:]))(params, batch, drawn)


def draws(stage, system, scale):
    drawn = guidance.draw(jax.random.key(2), system, stage)
    return dataclasses.replace(drawn, scale=jnp.full_like(drawn.scale, scale))


def test_at_scale_one_it_is_flow_matching():
    stage, system, *_ = setting()
    drawn = draws(stage, system, 1.0)
    expected = loss_of(flow_matching, dataclasses.replace(stage, guidance=1.0), drawn.plain)
    assert loss_of(guidance, stage, drawn) == pytest.approx(float(expected), rel=1e-6)


def test_it_asks_for_the_guided_velocity():
    stage, system, params, batch = setting()
    drawn = draws(stage, system, 3.0)
    encode, velocity, _ = compiled()
    x0, inputs = encode(params, batch)
    null = {name: np.broadcast_to(value, batch[name].shape) for name, value in system.null_tokens.items()}
    absent = {name: np.zeros_like(batch[name]) for name in ("content_valid", "style_valid")}
    _, nothing = encode(params, jax.tree.map(jnp.asarray, {**batch, **null, **absent}))
    x_t = flow.interpolate(x0, drawn.plain.noise, drawn.plain.t)
    v = lambda inputs, scale: velocity(params, inputs, x_t, drawn.plain.t, scale)
    target = drawn.plain.noise - x0 + 2.0 * (v(inputs, 1.0) - v(nothing, 1.0))
    expected = jnp.mean(jnp.square(v(inputs, 3.0) - target))
    found = loss_of(guidance, stage, drawn)
    assert found == pytest.approx(float(expected), rel=1e-5)
    unguided = loss_of(guidance, stage, draws(stage, system, 1.0))
    assert found != pytest.approx(float(unguided), rel=1e-2)


def test_the_teacher_carries_no_gradient():
    stage, system, params, batch = setting()
    drawn = draws(stage, system, 3.0)
    trained = {path: value for path, value in params.items() if path.startswith("transformer/")}
    loss = lambda trained, params, batch, drawn: guidance.loss({**params, **trained}, system, stage, batch, drawn)
    found = jax.jit(jax.grad(loss))(trained, params, batch, drawn)

    encode, velocity, without = compiled()
    x0, inputs = encode(params, batch)
    x_t = flow.interpolate(x0, drawn.plain.noise, drawn.plain.t)
    v = lambda trained, inputs, scale: velocity({**params, **trained}, inputs, x_t, drawn.plain.t, scale)
    nothing = without(params, inputs)
    fixed = drawn.plain.noise - x0 + 2.0 * (v(trained, inputs, 1.0) - v(trained, nothing, 1.0))
    expected = jax.jit(jax.grad(lambda trained: jnp.mean(jnp.square(v(trained, inputs, 3.0) - fixed))))(trained)
    flat = lambda tree: np.asarray(ravel_pytree(tree)[0])
    assert np.abs(flat(expected)).max() > 1e-3
    np.testing.assert_allclose(flat(found), flat(expected), atol=1e-5 * np.abs(flat(expected)).max())


def test_without_conditions_there_is_nothing_to_guide():
    stage, system, params, batch = setting()
    alone = dataclasses.replace(stage, all_dropout=1.0)
    drawn = draws(alone, system, 4.0)
    encode, velocity, without = compiled()
    x0, inputs = encode(params, batch)
    x_t = flow.interpolate(x0, drawn.plain.noise, drawn.plain.t)
    found = velocity(params, without(params, inputs), x_t, drawn.plain.t, 4.0)
    expected = jnp.mean(jnp.square(found - (drawn.plain.noise - x0)))
    assert loss_of(guidance, alone, drawn) == pytest.approx(float(expected), rel=1e-5)


def test_scales_reach_from_one_to_the_largest():
    stage, system, *_ = setting()
    drawn = guidance.draw(jax.random.key(0), system, dataclasses.replace(stage, batch_size=4000, max_guidance=5.0))
    scale = np.asarray(drawn.scale)
    assert scale.min() == 1.0 and 4.9 < scale.max() <= 5.0
    assert abs((scale == 1.0).mean() - 0.25) < 0.03
    assert abs(scale[scale > 1].mean() - 3.0) < 0.1
