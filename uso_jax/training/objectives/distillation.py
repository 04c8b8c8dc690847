# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Distillation to few steps: one step of the student does what several steps of its teacher do.

    (1) 1 = t_0 > ... > t_n = 0                       the schedule that the student will be sampled with
    (2) x = (1 - t_i) x_0 + t_i e                     i drawn from 0 ... n - 1, e ~ N(0, I)
    (3) y_0 = x,  y_j+1 = y_j + (s_j+1 - s_j) v_teacher(y_j, s_j, w | c)      s_0 = t_i ... s_m = t_i+1, evenly spaced
    (4) L = E || v_theta(x, t_i | c) - (y_m - x) / (t_i+1 - t_i) ||^2

This is progressive distillation (arXiv 2202.00512) to n steps at once: an Euler step of (4)'s optimum ends where m
steps of the teacher end. The teacher is the model before the stage, guided at w: by its embedded scale, which the
student has too, or by a second pass with the empty prompt, which the student does without (arXiv 2210.03142).
Shapes: b batch, l target tokens, d token channels.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from uso_jax import flow
from uso_jax.models.uso import USO, Batch, Inputs
from uso_jax.params import Params
from uso_jax.training.objectives import flow_matching
from uso_jax.training.stage import StageConfig

components = flow_matching.components


@jax.tree_util.register_dataclass
@dataclass
class Draws:
    """Everything random in one step: the draws of flow matching, whose times are not used, and the steps."""

    plain: flow_matching.Draws
    step: Int[Array, "*micro b"]


def draw(rng: Key[Array, ""], system: USO, stage: StageConfig) -> Draws:
    """Draw as flow matching does, and i of Eq. (2) for each example."""
    step = jax.random.randint(jax.random.fold_in(rng, 1), (stage.batch_size,), 0, stage.teacher.num_steps)
    return Draws(flow_matching.draw(rng, system, stage), step)


def loss(
    params: Params, system: USO, stage: StageConfig, batch: Batch, draws: Draws, *, teacher: Params
) -> Float[Array, ""]:
    """Return Eq. (4) of a batch, in float32; `teacher` has all parameters as they were before the stage."""
    config = stage.teacher
    times = jnp.asarray(system.schedule(config.num_steps, *stage.target_size, config.shift), jnp.float32)
    start, end = times[draws.step], times[draws.step + 1]
    batch = flow_matching.drop_conditions(system, batch, draws.plain)
    x0, inputs = flow_matching.encode(params, system, stage, batch)
    x = flow.interpolate(x0, draws.plain.noise, start)
    target = jax.lax.stop_gradient(mean_velocity(teacher, system, stage, inputs, x, start, end))
    predicted = system.velocity(params, inputs, x, start, config.guidance)
    return jnp.mean(jnp.square(predicted - target))


def mean_velocity(
    params: Params,
    system: USO,
    stage: StageConfig,
    inputs: Inputs,
    x: Float[Array, "b l d"],
    start: Float[Array, " b"],
    end: Float[Array, " b"],
) -> Float[Array, "b l d"]:
    """Return the mean velocity of the guided model's own steps from time `start` to time `end`, Eq. (3)."""
    config = stage.teacher
    inputs, style = system.prepare(params, system.guided(params, inputs, config.guidance), config.guidance)
    shares = jnp.linspace(0.0, 1.0, config.substeps + 1)[:, None]
    times = start[None] + shares * (end - start)[None]

    def step(y, pair):
        velocity = system.velocity(params, inputs, y, pair[0], config.guidance, style)
        return flow.euler_step(y, velocity, *pair), None

    y, _ = jax.lax.scan(step, x, (times[:-1], times[1:]))
    return (y - x) / (end - start)[:, None, None]


def sample(params: Params, system: USO, stage: StageConfig, batch: Batch, settings: Any) -> UInt8[Array, "b h w 3"]:
    """Generate an image for every example as the student is meant to be sampled, whatever `settings` say."""
    config = stage.teacher
    guidance = 1.0 if system.classifier_free else config.guidance  # the student needs no second pass
    own = dataclasses.replace(settings, num_steps=config.num_steps, guidance=guidance, shift=config.shift)
    return flow_matching.sample(params, system, stage, batch, own)
