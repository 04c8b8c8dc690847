# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Steps with a reward: when it counts, for which samples, what it costs, and what happens when it breaks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import training_steps as steps
import xla_flags
from comparison import relative

from uso_jax import flow
from uso_jax.common.errors import InputError
from uso_jax.models import tiled_decoding
from uso_jax.models.components import placement_rules
from uso_jax.parallel import sharding
from uso_jax.training import rewards
from uso_jax.training import step as train
from uso_jax.training.objectives import flow_matching, reward
from uso_jax.training.rewards import REWARDS, Reward

pytestmark = pytest.mark.slow  # compiles or runs whole programs

PLAIN = dict(eps=1e4, learning_rate=1e4, weight_decay=0.0, clip_norm=1e9)  # Adam as gradient descent at rate 1
SHORT = dict(weights=dict(csd_style=1.0), start=0, num_steps=4, last=3)
MOVED = 1e-5  # more than rounding


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


def stage(*, changes=None, **values):
    """Return one stage with a reward on a schedule of four steps; `changes` apply to the stage."""
    (found,) = tiny.config("joint", reward=SHORT | values, **(changes or {})).run_stages
    return found


def system():
    return steps.system()


def batch() -> dict[str, jax.Array]:
    return jax.tree.map(jnp.asarray, dict(steps.batch()))


def stepper(chosen, mesh=None, **options):
    """Return the start of a stage, its compiled step, and a list that grows whenever the step is traced."""
    mesh = mesh or steps.one_device()
    rates, traces = chosen.lr_multipliers(system().shapes), []
    function = train.make_train_step(system(), chosen, rates, seed=0)

    def traced(*args):
        traces.append(1)
        return function(*args)

    state, frozen = steps.start(chosen, mesh)
    where = sharding.shardings(mesh, placement_rules(), system().shapes)
    places = (train.state_shardings(state, where), sharding.replicated(mesh))
    return state, frozen, jax.jit(traced, out_shardings=places, **options), traces


def run(chosen, batches, **options):
    """Take one step a batch; give the state after each, and its metrics."""
    state, frozen, step, traces = stepper(chosen, **options)
    found = []
    for one in batches:
        state, metrics = step(state, frozen, one)
        found.append((state, {name: float(value) for name, value in metrics.items()}))
    return found, len(traces)


def largest_difference(x, y) -> float:
    return max(float(np.abs(np.asarray(x[path]) - np.asarray(y[path])).max()) for path in x)


# ---------------------------------------------------------------------------------------------------- when


@functools.cache
def four_steps(start: int | None):
    chosen = tiny.config("joint", **PLAIN).run_stages[0]
    if start is not None:
        chosen = stage(start=start, anchor=1.0, changes=PLAIN)
    return run(chosen, [batch()] * 4, compiler_options=xla_flags.usual())


def test_lambda_is_0_for_S_steps_then_1():
    (with_it, _), (without, _) = four_steps(2), four_steps(None)
    assert [metrics["reward_active"] for _, metrics in with_it] == [0, 0, 1, 1]
    differences = [largest_difference(a.params, b.params) for (a, _), (b, _) in zip(with_it, without, strict=True)]
    assert max(differences[:2]) < 1e-7 and min(differences[2:]) > MOVED
    for (_, metrics), (_, plain) in zip(with_it[:2], without[:2], strict=True):
        assert metrics["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    third, fourth = (metrics for _, metrics in with_it[2:])
    assert third["loss"] == pytest.approx(third["loss_pre"] + third["loss_reward"], rel=1e-6)
    assert third["loss_reward"] == pytest.approx(-third["reward"], rel=1e-6)
    assert third["reward"] == third["reward_csd_style"] and -1 <= third["reward"] <= 1
    # The anchor is the model after S steps, so the first rewarded step has not left it.
    assert third["reward_anchor"] < 1e-9 < fourth["reward_anchor"]
    for path, value in with_it[3][0].anchor.items():
        np.testing.assert_array_equal(value, with_it[1][0].params[path])


def test_one_compilation_for_every_t_and_across_S():
    chosen = stage(start=2, anchor=1.0)
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(0), number), 1) for number in range(4)]
    assert len({int(reward.draw(key, system(), chosen).t) for key in keys[2:]} | {0}) > 1
    _, traces = four_steps(2)
    assert traces == 1


def test_t_is_uniform_between_first_and_last():
    chosen = stage(num_steps=25, first=3, last=10)
    draw = jax.jit(jax.vmap(lambda key: reward.draw(key, system(), chosen).t))
    counts = np.bincount(np.asarray(draw(jax.random.split(jax.random.key(0), 4000))), minlength=12)
    assert counts[:3].sum() == counts[11:].sum() == 0
    # Four standard deviations of a binomial count.
    assert np.abs(counts[3:11] - 500).max() < 4 * np.sqrt(4000 / 8 * 7 / 8)


# ---------------------------------------------------------------------------------------------------- the path


@functools.cache
def encoded():
    chosen = stage()
    encode = jax.jit(lambda params, batch: flow_matching.encode(params, system(), chosen, batch)[1])
    return encode(steps.params(), batch())


def path_with(params, chosen, t: int):
    """Return where gradients begin, the tokens to decode and the loss, for a stopping step."""
    plain = flow_matching.draw(jax.random.key(0), system(), chosen)
    weighed = reward.weigh(system(), chosen, batch(), plain)
    draws = reward.Draws(reward.draw(jax.random.key(1), system(), chosen).noise, jnp.asarray(t))

    @jax.jit
    def go(params, inputs, weighed, draws):
        x_t = reward.roll_out(params, system(), chosen, inputs, draws)
        tokens, _ = reward.predict(params, system(), chosen, inputs, x_t, draws.t)
        described = rewards.describe(system(), params, chosen.reward.weights, weighed)
        return x_t, tokens, reward.loss(params, system(), chosen, inputs, weighed, described, x_t, draws.t)[0]

    return go(params, encoded(), weighed, draws)


@functools.cache
def path_of(t: int, **values):
    return path_with(steps.params(), stage(**values), t)


def test_roll_out_is_the_sampler_stopped_early():
    chosen, t = stage(), 2
    x_t, tokens, _ = path_of(t)
    times = reward.times(system(), chosen)
    np.testing.assert_allclose(times, flow.schedule(4, 64, 64, "flux"), rtol=1e-6)
    inputs = encoded()
    compiled = jax.jit(lambda params, inputs, x, time: system().velocity(params, inputs, x, time, 4.0))
    velocity = functools.partial(compiled, steps.params(), inputs)
    noise = reward.draw(jax.random.key(1), system(), chosen).noise
    want = flow.integrate(velocity, noise, times[: 4 - t + 1])
    np.testing.assert_allclose(x_t, want, atol=1e-5 * np.abs(want).max())
    time = jnp.full(8, times[4 - t])
    np.testing.assert_allclose(tokens, flow.predict_x0(want, velocity(want, time), time), atol=1e-4)


def test_more_gradient_steps_give_the_same_image():
    _, one, loss = path_of(2)
    x_t, two, loss_2 = path_of(2, last=2, gradient_steps=2)
    np.testing.assert_allclose(two, one, atol=1e-4)
    assert float(loss_2) == pytest.approx(float(loss), abs=1e-5)
    assert np.abs(x_t - path_of(3)[0]).max() < 1e-5  # one step less before gradients begin


@pytest.mark.parametrize("values", [dict(blocks=2), dict(remat_decoder=False)])
def test_saving_memory_changes_nothing(values):
    assert float(path_of(2, **values)[2]) == pytest.approx(float(path_of(2)[2]), rel=1e-5)


def test_tiles_decode_one_after_another():
    chosen = stage(changes=dict(target_size=(32, 32)), tile=16)
    params = steps.params()
    describe = jax.jit(lambda params, batch: rewards.describe(system(), params, chosen.reward.weights, batch))
    described = describe(params, batch())
    tokens = jax.random.normal(jax.random.key(0), (8, 64, 16))

    def scored(decode):
        latent = lambda tokens: flow.unpack(tokens, 8, 8, system().config.patch)
        return lambda tokens: rewards.score(system(), params, decode(latent(tokens)), described)["csd_style"]

    autoencoder = system().module(params, "autoencoder")
    total = lambda score: lambda tokens: jnp.sum(score(tokens))
    with_gradient = lambda score: jax.jit(jax.value_and_grad(total(score)))(tokens)
    score = lambda tokens: reward.score(params, system(), chosen, tokens, described)["csd_style"]
    value, gradient = with_gradient(score)
    want, want_gradient = with_gradient(scored(lambda z: tiled_decoding.decode_tiled(autoencoder.decode, z, 8)))
    assert float(value) == pytest.approx(float(want), rel=1e-5)
    np.testing.assert_allclose(gradient, want_gradient, atol=1e-5 * np.abs(want_gradient).max())
    whole = jax.jit(total(scored(autoencoder.decode)))(tokens)
    assert abs(float(whole) - float(value)) > 1e-4  # whole images differ a little


def test_phi():
    clipped = float(path_of(2, phi="clip", margin=2.0)[2])
    assert clipped == pytest.approx(2.0 + float(path_of(2)[2]), rel=1e-5)
    assert float(path_of(2, phi="clip", margin=-2.0)[2]) == 0


# ---------------------------------------------------------------------------------------------------- samples


_BOTH_LOSSES: dict = {}


def value_and_grad(chosen, given, mesh=None):
    """Return both losses, the metrics and both gradients for the random numbers of one step."""
    mesh = mesh or steps.one_device()
    plain = flow_matching.draw(jax.random.key(0), system(), chosen)
    draws = plain, reward.draw(jax.random.key(1), system(), chosen)
    rates = chosen.lr_multipliers(system().shapes)
    placed = jax.device_put(steps.numbers(), sharding.shardings(mesh, placement_rules(), system().shapes))

    @jax.jit
    def compute(params, given, draws):
        trainable = {path: params[path] for path in rates}
        frozen = {path: value for path, value in params.items() if path not in rates}
        weighed = reward.weigh(system(), chosen, given, draws[0])
        return reward.value_and_grad(trainable, frozen, {}, system(), chosen, weighed, draws, jnp.asarray(True))

    compute = _BOTH_LOSSES.setdefault(repr(chosen), compute)  # traced once
    with jax.set_mesh(mesh):
        return compute(placed, sharding.global_batch(mesh, {k: np.asarray(v) for k, v in given.items()}), draws)


def test_samples_without_a_style_image_do_not_count():
    chosen, full, partly = stage(), batch(), batch()
    partly["style_valid"] = partly["style_valid"].at[:3].set(False)
    other = partly | {"style": partly["style"].at[:3].set(255 - partly["style"][:3])}
    (_, value, tally), (_, grads) = value_and_grad(chosen, partly)
    (_, value_2, _), (_, grads_2) = value_and_grad(chosen, other)
    assert float(value) == float(value_2) and largest_difference(grads, grads_2) == 0
    assert tally["reward"][1] == tally["reward_csd_style"][1] == 5
    # The others' scores do not depend on their neighbours, so the mean is over those five.
    (_, _, everyone), _ = value_and_grad(chosen, full)
    assert everyone["reward"][1] == 8
    assert float(value) == pytest.approx(-float(tally["reward"][0]) / 5, rel=1e-5)


def test_a_batch_without_any_style_image_has_no_reward():
    nobody = batch() | {"style_valid": jnp.zeros((8, 1), bool)}
    (pre, value, tally), (plain, grads) = value_and_grad(stage(), nobody)
    assert float(value) == 0 and float(tally["reward"][1]) == 0 and np.isfinite(float(pre))
    assert all(not np.asarray(grad).any() for grad in grads.values())
    assert all(np.isfinite(grad).all() for grad in plain.values())


def test_weighted_sum_counts_each_reward_where_its_reference_is(monkeypatch):
    by_content = Reward(score=lambda system, params, images, _: jnp.full(images.shape[0], 0.5), needs=("content",))
    monkeypatch.setitem(REWARDS, "half", by_content)
    given = batch()
    given["style_valid"] = given["style_valid"].at[0].set(False)
    given["content_valid"] = jnp.ones(8, bool).at[:2].set(False)
    (_, value, tally), _ = value_and_grad(stage(weights=dict(csd_style=2.0, half=3.0)), given)
    assert [float(tally[name][1]) for name in ("reward", "reward_csd_style", "reward_half")] == [7, 7, 6]
    want = 2 * float(tally["reward_csd_style"][0]) + 3 * 0.5 * 6
    assert float(tally["reward"][0]) == pytest.approx(want, rel=1e-5)
    assert float(value) == pytest.approx(-want / 7, rel=1e-5)


def test_dropped_style_is_no_reference():
    chosen = stage(changes=dict(style_dropout=1.0))
    (_, value, tally), _ = value_and_grad(chosen, batch())
    assert float(value) == float(tally["reward"][1]) == 0


def test_eight_devices_equal_one():
    chosen = stage()
    (pre, value, _), (plain, grads) = value_and_grad(chosen, batch())
    (pre_8, value_8, _), (plain_8, grads_8) = value_and_grad(chosen, batch(), steps.eight_devices())
    assert relative(pre_8, pre) < 1e-5 and relative(value_8, value) < 1e-5
    for got, want in ((plain_8, plain), (grads_8, grads)):
        size = max(float(np.abs(x).max()) for x in want.values())
        assert largest_difference(got, want) < 2e-5 * size


def test_micro_batches_equal_one_batch():
    # Half of the style images are dropped, so the micro-batches differ in how many samples count.
    changes = PLAIN | dict(style_dropout=0.5)
    ((whole, metrics),), _ = run(stage(changes=changes), [batch()])
    ((parts, metrics_2),), _ = run(stage(changes=changes | dict(accumulate=4)), [batch()])
    moved = largest_difference(whole.params, steps.numbers())
    assert moved > MOVED
    # Sums in another order differ by a few units in the last place of the largest update, on some processors more.
    assert largest_difference(parts.params, whole.params) < 16 * np.finfo(np.float32).eps * moved
    for name in ("loss", "loss_reward", "reward", "reward_csd_style"):
        assert metrics_2[name] == pytest.approx(metrics[name], rel=1e-5), name


# ---------------------------------------------------------------------------------------------------- what is frozen


def test_only_the_transformer_may_learn_from_a_reward():
    chosen = stage()
    assert all(path.startswith("transformer/") for path in chosen.lr_multipliers(system().shapes))
    for component in ("autoencoder", "csd", "text", "siglip"):
        rules = ((rf"({component}|transformer/feature_embedder)/.*", 1.0), (r".*", None))
        with pytest.raises(InputError, match=rf"has a reward, so it may train the transformer only, not {component}/"):
            stage(changes=dict(train=rules)).lr_multipliers(system().shapes)


# ---------------------------------------------------------------------------------------------------- NaN


BAD = {"value": 999, "gradient": 998}


def broken() -> Reward:
    """Make a reward that breaks in its value where the style label is 999, and in its gradient only where it is 998."""

    def score(system, params, images, labels):
        value = jnp.mean(images, axis=(1, 2, 3))
        sound = jnp.where(labels == BAD["gradient"], 0.0, 1.0)
        return jnp.where(labels == BAD["value"], jnp.nan, value + jnp.sqrt(sound * jnp.square(value)))

    return Reward(score=score, describe=lambda system, params, batch: batch["style_label"])


@pytest.mark.parametrize("kind", BAD)
def test_a_step_without_a_finite_reward_is_skipped(kind, monkeypatch):
    monkeypatch.setitem(REWARDS, "broken", broken())
    bad = batch() | {"style_label": batch()["style_label"].at[3].set(BAD[kind])}
    chosen = stage(weights=dict(broken=1.0), changes=dict(ema_decay=0.5, accumulate=2))
    start, *_ = stepper(chosen)
    ((after_bad, bad_metrics), (after_good, good_metrics)), traces = run(chosen, [bad, batch()])
    assert [bad_metrics["reward_skipped"], good_metrics["reward_skipped"], traces] == [1, 0, 1]
    assert all(np.isfinite(list(metrics.values())).all() for metrics in (bad_metrics, good_metrics))
    assert int(after_bad.step) == 1
    for name in ("params", "opt_state", "ema"):
        before, after = (jax.tree.leaves(getattr(state, name)) for state in (start, after_bad))
        assert all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))
    assert largest_difference(after_good.params, start.params) > 0
    assert int(steps.adam(after_good).count) == 1


def test_training_raises_what_is_rewarded(monkeypatch):
    bright = Reward(score=lambda system, params, images, _: jnp.mean(jnp.tanh(images), axis=(1, 2, 3)))
    monkeypatch.setitem(REWARDS, "bright", bright)
    chosen = stage(weights=dict(bright=1.0), scale=20.0, first=1, last=1, changes=dict(learning_rate=1e-2))
    found, traces = run(chosen, [batch()] * 30)
    # With the same noise before and after, which moves the reward more than 30 steps do.
    before, after = (-float(path_with(steps.params() | p, chosen, 1)[2]) for p in ({}, found[-1][0].params))
    assert traces == 1
    assert after > before + 0.005
