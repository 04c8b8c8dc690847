# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Properties of the flow's formulas that need no reference."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uso_jax import flow


def draw(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


X0, NOISE, T = draw(0, 3, 4, 5), draw(1, 3, 4, 5), jnp.asarray([0.0, 0.3, 1.0])


@pytest.mark.parametrize("mu", (-1.0, 0.0, 0.4675, 1.15))
def test_time_shift(mu):
    times = np.linspace(0, 1, 101)
    shifted = flow.time_shift(times, mu)
    assert shifted[0] == 0 and shifted[-1] == 1
    assert (np.diff(shifted) > 0).all()
    assert (mu * (shifted - times)[1:-1] >= 0).all()
    # Shifting by mu and then by -mu changes nothing: Eq. (5) adds mu to the logit of t.
    np.testing.assert_allclose(flow.time_shift(shifted, -mu), times, atol=1e-12)
    np.testing.assert_allclose(flow.time_shift(jnp.asarray(times), mu), shifted, atol=1e-6)


def test_shift_mu():
    assert flow.shift_mu(256) == 0.5 and flow.shift_mu(4096) == pytest.approx(1.15)
    assert flow.shift_mu(64) == pytest.approx(0.4675)  # what upstream takes at 1024 x 1024


@pytest.mark.parametrize("shift", ("flux", "upstream", "none"))
def test_schedule(shift):
    times = flow.schedule(25, 1024, 768, shift)
    assert times.shape == (26,) and times[0] == 1 and times[-1] == 0
    assert (np.diff(times) < 0).all()


def test_schedule_shifts():
    mean = lambda shift, size: flow.schedule(10, size, size, shift).mean()
    assert mean("none", 1024) == pytest.approx(0.5)
    assert mean("none", 1024) < mean("upstream", 1024) < mean("flux", 1024)
    assert mean("flux", 512) < mean("flux", 1024)


def test_sample_times():
    draws = {mu: flow.sample_times(jax.random.key(0), 20_000, mu) for mu in (0.0, 1.15)}
    for times in draws.values():
        assert times.min() == 0 and times.max() == 1
    assert float(draws[0.0].mean()) == pytest.approx(0.5, abs=0.01)
    table = flow.time_shift(np.linspace(1, 0, 1000), 1.15)
    assert float(draws[1.15].mean()) == pytest.approx(table.mean(), abs=0.01) and table.mean() > 0.65


def test_path_ends():
    x_t = flow.interpolate(X0, NOISE, T)
    np.testing.assert_array_equal(x_t[0], X0[0])
    np.testing.assert_array_equal(x_t[2], NOISE[2])


def test_true_velocity_leads_home():
    x_t, velocity = flow.interpolate(X0, NOISE, T), flow.velocity_target(X0, NOISE)
    np.testing.assert_allclose(flow.predict_x0(x_t, velocity, T), X0, atol=1e-6)
    np.testing.assert_allclose(flow.euler_step(x_t, velocity, T, jnp.zeros(3)), X0, atol=1e-6)
    # A step between two times stays on the path.
    s = jnp.asarray([0.0, 0.1, 0.6])
    np.testing.assert_allclose(flow.euler_step(x_t, velocity, T, s), flow.interpolate(X0, NOISE, s), atol=1e-6)


def test_integrate():
    times = jnp.asarray(flow.schedule(7, 512, 512), jnp.float32)
    constant = flow.integrate(lambda x, t: NOISE - X0, NOISE, times)
    np.testing.assert_allclose(constant, X0, atol=1e-5)
    # The field sees the time at which each step starts: the sum of t (s - t) over the steps.
    shape = lambda t: jnp.broadcast_to(t[:, None, None], X0.shape)
    want = X0 + float((times[:-1] * (times[1:] - times[:-1])).sum())
    np.testing.assert_allclose(flow.integrate(lambda x, t: shape(t), X0, times), want, atol=1e-5)


def test_adams_steps_are_of_second_order():
    """Follow dx/dt = 3 x cos(3 t) from 1 to 0 by steps of different lengths: x(0) = x(1) exp(-sin 3)."""
    velocity = lambda x, t: 3 * x * jnp.cos(3 * t)[:, None, None]

    def end(num_steps, adams):
        x = earlier = X0
        times = np.linspace(1, 0, num_steps + 1) ** 1.3
        r = np.inf
        for t, s in itertools.pairwise(times):
            r, t, s = (jnp.full(3, float(time)) for time in (r, t, s))
            v = velocity(x, t)
            x = flow.adams_step(x, v, earlier, r, t, s) if adams else flow.euler_step(x, v, t, s)
            r, earlier = float(t[0]), v
        return x

    error = lambda *how: float(jnp.abs(end(*how) - X0 * np.exp(-np.sin(3))).max())
    np.testing.assert_array_equal(end(1, True), end(1, False))  # the first step has none before it
    assert 3.3 < error(20, True) / error(40, True) < 4.7 and 1.7 < error(20, False) / error(40, False) < 2.5
    assert error(20, True) < 0.3 * error(20, False)


@pytest.mark.parametrize("patch", (1, 2))
def test_packing(patch):
    latent = draw(2, 2, 4 * patch, 3 * patch, 5)
    tokens = flow.pack(latent, patch)
    assert tokens.shape == (2, 12, 5 * patch**2)
    np.testing.assert_array_equal(flow.unpack(tokens, 4, 3, patch), latent)
    # Token 4 is row 1, column 1; its first channels are channel 0 of the patch, row by row.
    np.testing.assert_array_equal(
        tokens[:, 4, : patch**2], latent[:, patch : 2 * patch, patch : 2 * patch, 0].reshape(2, -1)
    )


def test_position_ids():
    ids = flow.position_ids(2, 3, (10, 20))
    np.testing.assert_array_equal(ids[:, 0], 0)
    np.testing.assert_array_equal(ids[:, 1], [10, 10, 10, 11, 11, 11])
    np.testing.assert_array_equal(ids[:, 2], [20, 21, 22] * 2)


def test_references_never_share_a_position():
    target, references = (3, 4), [(2, 2), (5, 1)]
    sets = [flow.position_ids(*target), *flow.reference_ids(target, references)]
    rows = np.concatenate(sets)
    assert len(np.unique(rows, axis=0)) == len(rows)
    np.testing.assert_array_equal(sets[1][0], (0, 3, 4))
    np.testing.assert_array_equal(sets[2][0], (0, 5, 6))


def test_words_that_do_not_exist():
    # Without the type checker, which stops them first while tests run.
    with pytest.raises(ValueError, match="shift must be"):
        inspect.unwrap(flow.schedule)(10, 1024, 1024, "sd3")
    with pytest.raises(ValueError, match="mode must be"):
        inspect.unwrap(flow.reference_ids)((3, 4), [(2, 2)], "x")
