# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""DiffusionNFT: the loss against an independent one in torch, advantages, the old policy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from comparison import relative
from training_steps import adam, batch, one_device, start, system

from uso_jax.common.errors import InputError
from uso_jax.training.advantages import advantages
from uso_jax.training.objectives import nft
from uso_jax.training.objectives.flow_matching import encode_conditions
from uso_jax.training.policy import ADVANTAGES, COUNTED, PolicyConfig, update_old
from uso_jax.training.stage import StageConfig
from uso_jax.training.step import make_train_step

B, L, D = 3, 4, 5


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    names = ("velocity", "old", "x0", "noise")
    found = {name: rng.standard_normal((B, L, D)).astype(np.float32) for name in names}
    t = rng.uniform(0.1, 0.9, B).astype(np.float32)
    x_t = (1 - t[:, None, None]) * found["x0"] + t[:, None, None] * found.pop("noise")
    return found | {"x_t": x_t, "t": t, "advantages": np.array([-7.0, 0.3, 2.0], np.float32)}


def by_torch(config, velocity, old, x0, x_t, t, advantages):
    """Return the error of each image from the paper's equations, with the velocity's gradient of their sum."""
    torch = pytest.importorskip("torch")
    v = torch.tensor(velocity, dtype=torch.float64, requires_grad=True)
    v_old, x0, x_t, t = (torch.tensor(x, dtype=torch.float64) for x in (old, x0, x_t, t))
    total = []
    for i in range(B):
        r = 0.5 + 0.5 * float(np.clip(advantages[i] / config.clip, -1, 1))
        terms = []
        for sign in (1, -1):  # v+ = v_old + beta (v - v_old), v- = v_old - beta (v - v_old)
            image = x_t[i] - t[i] * (v_old[i] + sign * config.beta * (v[i] - v_old[i]))
            weight = (image - x0[i]).abs().mean().detach()
            terms.append(((image - x0[i]) ** 2).mean() / weight)
        total.append((r * terms[0] + (1 - r) * terms[1]) * config.clip / config.beta)
    torch.stack(total).sum().backward()
    return torch.stack(total).detach().numpy(), v.grad.numpy()


def errors_and_gradient(config, given):
    """Return the error of each image, and the velocity's gradient of their sum."""
    given = {name: jnp.asarray(value) for name, value in given.items()}
    error = lambda velocity: nft.policy_error(config, **given | {"velocity": velocity})
    return np.asarray(error(given["velocity"])), np.asarray(jax.grad(lambda v: error(v).sum())(given["velocity"]))


@pytest.mark.parametrize("beta", (1.0, 0.3))
def test_loss_and_gradient_equal_torch(beta):
    config, given = PolicyConfig(beta=beta), drawn()
    errors, gradient = errors_and_gradient(config, given)
    expected, slope = by_torch(config, **given)
    np.testing.assert_allclose(errors, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, atol=1e-5 * np.abs(slope).max())


MISTAKES = {
    "policies exchanged": lambda config, given: (config, given | {"advantages": -given["advantages"]}),
    "old policy ignored": lambda config, given: (config, given | {"old": given["velocity"]}),
    "beta ignored": lambda config, given: (dataclasses.replace(config, beta=1.0), given),
    "advantages not clipped": lambda config, given: (dataclasses.replace(config, clip=10.0), given),
    "wrong time": lambda config, given: (config, given | {"t": 1 - given["t"]}),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_caught(mistake):
    config, given = PolicyConfig(beta=0.3), drawn()
    expected, _ = by_torch(config, **given)
    config, given = MISTAKES[mistake](config, given)
    found, _ = errors_and_gradient(config, given)
    assert np.abs(found / expected - 1).max() > 1e-2


def test_the_gradient_points_to_good_images_and_away_from_bad_ones():
    """A small step lowers the image error of an optimal image and raises that of the worst."""
    config = PolicyConfig(clip=1.0)
    given = drawn() | {"advantages": np.array([1.0, -1.0, 0.0], np.float32)}
    given["velocity"] = given["old"]
    _, gradient = errors_and_gradient(config, given)
    image_error = lambda v: np.square(given["x_t"] - given["t"][:, None, None] * v - given["x0"]).mean((1, 2))
    change = image_error(given["old"] - 1e-2 * gradient) - image_error(given["old"])
    assert change[0] < 0 < change[1] and abs(change[2]) < 1e-6


def test_the_old_policy_follows():
    config = PolicyConfig(old_flat=2, old_rate=0.1, old_most=0.25)
    shares = [float(update_old(config, {"w": 1.0}, {"w": 0.0}, number)["w"]) for number in range(1, 7)]
    assert shares == pytest.approx([0.0, 0.0, 0.1, 0.2, 0.25, 0.25])


# ---------------------------------------------------------------------------------------------------- noise levels


def stage_of(**changes):
    policy = PolicyConfig(prompts=4, group=2, **changes)
    (stage,) = tiny.config("joint", reward=None, policy=policy, learning_rate=1e-3).run_stages
    return stage


def pairs(values):
    """Return whether two images' noises or times are equal, for all pairs."""
    return [np.array_equal(values[i], values[j]) for i in range(len(values)) for j in range(i)]


def test_every_image_has_separate_noises_and_times():
    draws = nft.draw(jax.random.key(0), system(), stage_of(levels=3))
    assert draws.noise.shape[:2] == draws.t.shape == (8, 3)
    assert not any(pairs(draws.noise) + pairs(draws.t))
    assert not any(pairs(draws.noise[0]))


def test_images_may_share_noises_and_times():
    draws = nft.draw(jax.random.key(0), system(), stage_of(levels=3, common_noise=True))
    assert draws.noise.shape[:2] == draws.t.shape == (8, 3)
    assert all(pairs(draws.noise) + pairs(draws.t))
    assert not any(pairs(draws.noise[0]))
    assert len(np.unique(draws.t)) > 1


def test_what_common_noise_does_to_all_images_alike_cancels():
    """Of equal images, a step learns nothing from noise that they share, and something from separate ones."""
    x0 = np.repeat(drawn()["x0"][:1], 2, axis=0)
    noise, t = np.random.default_rng(1).standard_normal((2, L, D)).astype(np.float32), np.float32([0.4, 0.6])

    def slope(noise, t):
        x_t = (1 - t[:, None, None]) * x0 + t[:, None, None] * noise
        given = {"x0": x0, "x_t": x_t, "t": t, "advantages": np.float32([1, -1])}
        given = {name: jnp.asarray(value) for name, value in given.items()}
        predict = lambda weight: weight * given["x_t"]
        error = lambda weight: nft.policy_error(PolicyConfig(), velocity=predict(weight), old=predict(0.5), **given)
        return float(jax.grad(lambda weight: error(weight).sum())(0.5))

    assert abs(slope(noise[[0, 0]], t[[0, 0]])) < 1e-6
    assert abs(slope(noise, t)) > 1e-2


@pytest.mark.slow
def test_a_step_takes_the_mean_over_its_levels():
    stage = stage_of(levels=3, anchor=0.1)
    state, frozen = start(stage, one_device())
    state = dataclasses.replace(state, old={path: 0.9 * value for path, value in state.params.items()})
    rows = np.random.default_rng(0)
    _, tokens, width = nft.draw(jax.random.key(0), system(), stage).noise.shape[1:]
    images = {nft.IMAGES: rows.standard_normal((8, tokens, width)).astype(np.float32)}
    examples = dict(batch()) | images | {ADVANTAGES: rows.standard_normal(8).astype(np.float32)}
    examples[COUNTED] = np.float32([1, 1, 1, 0, 1, 1, 1, 1])
    examples = jax.tree.map(jnp.asarray, examples)
    rng = jax.random.fold_in(jax.random.key(0), 0)

    @jax.jit
    def expected(state, frozen):
        inputs = encode_conditions({**frozen, **state.params}, system(), stage, examples)
        others = [{**frozen, **state.old}, {**frozen, **state.anchor}, system(), stage, inputs, examples]
        draws = nft.draw(rng, system(), stage)
        at = lambda k: nft.Draws(draws.noise[:, k], draws.t[:, k])
        loss = lambda params: sum(nft.loss({**frozen, **params}, *others, at(k))[0] for k in range(3)) / 3
        return jax.value_and_grad(loss)(state.params)

    cost, gradient = expected(state, frozen)
    function = make_train_step(system(), stage, stage.lr_multipliers(system().shapes), seed=0)
    after, metrics = jax.jit(function)(state, frozen, examples)
    assert relative(metrics["loss"], cost) < 1e-6
    assert relative(metrics["grad_norm"], optax.tree.norm(gradient)) < 1e-5
    clipped = optax.clip_by_global_norm(stage.clip_norm).update(gradient, optax.EmptyState())[0]
    errors = {path: relative(moment, (1 - stage.betas[0]) * clipped[path]) for path, moment in adam(after).mu.items()}
    assert max(errors.values()) < 1e-4


# ---------------------------------------------------------------------------------------------------- advantages

NAN = np.nan


def test_images_are_compared_within_their_group():
    scores = {"a": np.array([[1.0, 3.0], [10.0, 14.0]])}
    found, counted = advantages(PolicyConfig(weights={"a": 1.0}, spread="group"), scores)
    np.testing.assert_allclose(found, [[-1, 1], [-1, 1]], rtol=1e-3)
    found, _ = advantages(PolicyConfig(weights={"a": 1.0}, spread="round"), scores)
    np.testing.assert_allclose(found, np.array([[-1, 1], [-2, 2]]) / np.std([1, 3, 10, 14]), rtol=1e-3)
    assert counted.all()


def test_an_image_without_a_score_leaves_its_group():
    scores = {"a": np.array([[1.0, NAN, 3.0], [NAN, NAN, 5.0]])}
    found, counted = advantages(PolicyConfig(weights={"a": 1.0}, spread="group"), scores)
    np.testing.assert_array_equal(counted, [[True, False, True], [False, False, True]])
    np.testing.assert_allclose(found, [[-1, 0, 1], [0, 0, 0]], atol=1e-3)
    nothing, counted = advantages(PolicyConfig(weights={"a": 1.0}), {"a": np.full((2, 2), NAN)})
    assert not counted.any() and not nothing.any()


@pytest.mark.parametrize("combine", ("parts", "sum", "product"))
def test_combinations(combine):
    """By parts, a score of a thousand times the scale decides no more than the other one."""
    scores = {"style": np.array([[1.0, 2.0, 3.0, 4.0]]), "content": np.array([[3000.0, 4000.0, 1000.0, 2000.0]])}
    config = PolicyConfig(weights={"style": 1.0, "content": 1.0}, combine=combine, spread="group")
    found, _ = advantages(config, scores)
    by = {
        "parts": lambda s, c: (s - s.mean()) / s.std() / 2 + (c - c.mean()) / c.std() / 2,
        "sum": lambda s, c: s + c,
        "product": lambda s, c: s * c,
    }[combine](*scores.values())
    expected = by - by.mean() if combine == "parts" else (by - by.mean()) / by.std()
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert found.argmax() == 1


def test_a_negative_weight_is_a_penalty():
    found, _ = advantages(PolicyConfig(weights={"a": -2.0}), {"a": np.array([[1.0, 2.0]])})
    assert found[0, 0] > 0 > found[0, 1]
    assert not advantages(PolicyConfig(weights={"a": 1.0}), {"a": np.ones((1, 3))})[0].any()


# ---------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(weights={}), "weights are empty"),
        (dict(judges=("csd_style",)), "cannot judge what it rewards"),
        (dict(combine="mean"), "parts, sum, product"),
        (dict(group=1), "at least 2"),
        (dict(prompts=3, group=5), "15 images"),
        (dict(sample_batch=3), "sample_batch 3"),
        (dict(old_most=1.0), "never moves"),
        (dict(levels=0), "levels must be at least 1"),
        (dict(method="grpo", levels=2), "leave out levels"),
        (dict(method="grpo", common_noise=True), "leave out levels and common_noise"),
        (dict(combine="product", weights={"a": -1.0}), "negative"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes, words):
    with pytest.raises(InputError, match=words):
        StageConfig("s", policy=PolicyConfig(**changes))


def test_a_stage_has_one_objective():
    with pytest.raises(InputError, match="no reward"):
        StageConfig("s", loss="guidance", policy=PolicyConfig())
    assert StageConfig("s", policy=PolicyConfig(prompts=4, group=8, epochs=2)).policy.steps_per_round(16) == 4
