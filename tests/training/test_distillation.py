# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Distillation to few steps: the loss against its equations in NumPy, whom the gradient reaches, and a short stage."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from uso_jax.common.errors import InputError
from uso_jax.models.uso import USO, Inputs
from uso_jax.training.config import HeldoutConfig
from uso_jax.training.fit import fit
from uso_jax.training.objectives import distillation, flow_matching
from uso_jax.training.stage import StageConfig, TeacherConfig

B, L, D = 5, 3, 4
TEACHER = TeacherConfig(num_steps=3, substeps=4, guidance=2.5, shift="none")
STAGE = StageConfig("distillation", loss="distillation", teacher=TEACHER, batch_size=B, target_size=(16, 16))
TIMES = np.array([1.0, 0.8, 0.3, 0.0])


def v(params, x, t, scale, xp):
    """Return the velocity of a model of two numbers, curved in x, t and the guidance scale."""
    return xp.tanh(params["a"] * x) * (1 + params["b"] * scale) + xp.sin(3 * t)[:, None, None]


class Guided(USO):
    """A system whose model is `v`; with two passes, those of the prompt have the scale 1 and the others 0."""

    classifier_free = False

    def __init__(self, two_passes: bool):
        self.classifier_free = two_passes

    def schedule(self, num_steps, height, width, shift):
        assert (num_steps, height, width, shift) == (3, 16, 16, "none")
        return TIMES

    def guided(self, params, inputs, guidance):
        two = self.classifier_free and guidance != 1
        return dataclasses.replace(inputs, negative_txt=inputs.txt) if two else inputs

    def prepare(self, params, inputs, guidance):
        return inputs, None

    def velocity(self, params, inputs, x, t, guidance, style=None):
        if not self.classifier_free:
            return v(params, x, t, guidance, jnp)
        one, nothing = (v(params, x, t, scale, jnp) for scale in (1.0, 0.0))
        return one if inputs.negative_txt is None else nothing + guidance * (one - nothing)


def numbers():
    rng = np.random.default_rng(0)
    x0, noise = rng.standard_normal((2, B, L, D)).astype(np.float32)
    return x0, noise, np.array([0, 2, 1, 2, 0])


def by_numpy(two_passes, student, teacher):
    """Return the loss, sample by sample, step by step."""
    x0, noise, steps = numbers()
    total = []
    for one, e, i in zip(x0.astype(np.float64), noise.astype(np.float64), steps, strict=True):
        start, end = TIMES[i], TIMES[i + 1]
        at = lambda params, x, t, scale: v(params, x[None], np.array([t]), scale, np)[0]

        def taught(x, t, at=at):
            if not two_passes:
                return at(teacher, x, t, TEACHER.guidance)
            without = at(teacher, x, t, 0.0)
            return without + TEACHER.guidance * (at(teacher, x, t, 1.0) - without)

        x = (1 - start) * one + start * e
        y, h = x, (end - start) / TEACHER.substeps
        for j in range(TEACHER.substeps):
            y = y + h * taught(y, start + j * h)
        predicted = at(student, x, start, 1.0 if two_passes else TEACHER.guidance)
        total.append(((predicted - (y - x) / (end - start)) ** 2).mean())
    return np.mean(total)


@pytest.fixture
def encoded(monkeypatch):
    """Let batches be encoded as their numbers."""
    x0, noise, steps = numbers()
    monkeypatch.setattr(flow_matching, "drop_conditions", lambda system, batch, draws: batch)
    inputs = Inputs(jnp.zeros((B, 1, 1)), None, jnp.zeros((1, L, 3)))
    monkeypatch.setattr(flow_matching, "encode", lambda params, system, stage, batch: (jnp.asarray(x0), inputs))
    return distillation.Draws(_plain(noise), jnp.asarray(steps))


def _plain(noise):
    nothing = jnp.zeros(B, bool)
    return flow_matching.Draws(jnp.asarray(noise), jnp.zeros(B), nothing, nothing, nothing, nothing)


@pytest.mark.parametrize("two_passes", (False, True))
def test_loss_and_gradient_follow_the_equations(encoded, two_passes):
    student, teacher = {"a": 0.7, "b": 0.2}, {"a": 1.3, "b": -0.4}
    loss = lambda student, teacher: distillation.loss(student, Guided(two_passes), STAGE, {}, encoded, teacher=teacher)
    given = jax.tree.map(jnp.float32, student), jax.tree.map(jnp.float32, teacher)
    found, (of_student, of_teacher) = jax.value_and_grad(loss, argnums=(0, 1))(*given)
    assert found == pytest.approx(by_numpy(two_passes, student, teacher), rel=1e-5)
    for name, slope in of_student.items():
        change = lambda sign, name=name: by_numpy(two_passes, student | {name: student[name] + sign * 1e-4}, teacher)
        assert slope == pytest.approx((change(1) - change(-1)) / 2e-4, rel=1e-3)
    assert not any(of_teacher.values())


def test_a_straight_path_leaves_nothing_to_learn(encoded):
    straight = {"a": jnp.zeros(()), "b": jnp.zeros(())}
    system = Guided(False)
    system.velocity = lambda params, inputs, x, t, guidance, style=None: jnp.ones_like(x) * (1 + params["a"])
    assert distillation.loss(straight, system, STAGE, {}, encoded, teacher=straight) < 1e-12


def test_every_step_of_the_schedule_is_drawn(monkeypatch):
    monkeypatch.setattr(flow_matching, "draw", lambda rng, system, stage: _plain(numbers()[1]))
    drawn = distillation.draw(jax.random.key(0), Guided(False), dataclasses.replace(STAGE, batch_size=3000))
    assert np.abs(np.bincount(drawn.step, minlength=3) / 3000 - 1 / 3).max() < 0.05


def test_samples_are_drawn_as_the_student_is_meant_to_be(monkeypatch):
    seen, nothing = [], jnp.zeros((B, 2, 2, 3), jnp.uint8)
    monkeypatch.setattr(flow_matching, "sample", lambda *args: seen.append(args[-1]) or nothing)
    for two_passes, guidance in ((False, 2.5), (True, 1.0)):
        distillation.sample({}, Guided(two_passes), STAGE, {}, HeldoutConfig())
        assert (seen[-1].num_steps, seen[-1].guidance, seen[-1].shift) == (3, guidance, "none")


@pytest.mark.parametrize(
    "changes, message",
    (
        (dict(loss="flow_matching"), "teacher go together"),
        (dict(teacher=None), "teacher go together"),
        (dict(teacher=TeacherConfig(substeps=0)), "substeps must be at least 1, guidance not negative, not 4, 0"),
    ),
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(STAGE, **changes)


@pytest.mark.slow
@pytest.mark.usefixtures("cheap_compilation")
def test_a_stage_learns_what_its_start_does_in_more_steps(tmp_path):
    teacher = TeacherConfig(num_steps=2, substeps=2, guidance=3.0)
    config = tiny.config("joint", loss="distillation", teacher=teacher, learning_rate=1e-2, steps=12)
    (stage,) = fit(config, tmp_path)["stages"]
    assert 0 < stage["heldout_loss_after"] < 0.9 * stage["heldout_loss_before"]
