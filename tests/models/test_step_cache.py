# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The first-block cache: when a step is reused, what it reuses, and that nothing else of it runs."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import error
from small_transformers import BATCH, FAMILIES, batch, drawn, structure

from uso_jax.models.step_cache import StepCache

pytestmark = pytest.mark.usefixtures("cheap_compilation")
SHAPE = (3, 4, 5)


def by_numpy(thresholds, steps):
    """Yield what the other blocks add and the numbers of reused steps, one sample and step after the other."""
    kept, reused = [None] * len(thresholds), np.zeros(len(thresholds), int)
    for first, rest in steps:
        for i, threshold in enumerate(thresholds):
            if kept[i] is not None and abs(first[i] - kept[i][0]).mean() / abs(kept[i][0]).mean() < threshold:
                reused[i] += 1
            else:
                kept[i] = first[i], rest[i]
        yield np.stack([one[1] for one in kept]), reused.copy()


def test_it_decides_as_written_down_and_runs_only_what_it_needs():
    rng, ran = np.random.default_rng(0), []
    start = rng.standard_normal(SHAPE)
    # The first block's output drifts; each sample has its own threshold, and the last one never reuses.
    steps = [
        ((start + 0.1 * number * rng.standard_normal(SHAPE)).astype(np.float32), rng.standard_normal(SHAPE))
        for number in (0, 0.1, 0.2, 6, 6, 0)
    ]
    advance = jax.jit(
        lambda cache, first, rest: cache.advance(first, lambda: jax.debug.callback(lambda: ran.append(1)) or rest)
    )
    for thresholds, runs in (((0.05, 0.5, 0.0), 6), ((0.05, 0.5, 0.5), 4), ((2.0, 2.0, 2.0), 1)):
        cache = StepCache.empty(jnp.asarray(thresholds, jnp.float32), *SHAPE[1:], jnp.float32)
        ran.clear()
        for (first, rest), (want, reused) in zip(steps, by_numpy(thresholds, steps), strict=True):
            got, cache = advance(cache, jnp.asarray(first), jnp.asarray(rest, jnp.float32))
            np.testing.assert_allclose(got, want, rtol=1e-6)
            np.testing.assert_array_equal(cache.reused, reused)
        jax.effects_barrier()
        assert len(ran) == runs


def test_a_first_block_without_effect_is_no_reason_to_reuse():
    cache = StepCache.empty(jnp.full((3,), 1e9), *SHAPE[1:], jnp.float32)
    for number in (1.0, 2.0):
        rest, cache = cache.advance(jnp.zeros(SHAPE), lambda number=number: jnp.full(SHAPE, number))
        np.testing.assert_array_equal(rest, number)
    assert not cache.reused.any()


@functools.cache
def programs(family: str):
    """Return the step with a cache, and the one without."""
    references = batch(family)[1]
    cached = lambda params, step, cache: structure(family)(params)(**step, **references, cache=cache)
    plain = lambda params, step: structure(family)(params)(**step, **references)
    return jax.jit(cached), jax.jit(plain)


def silent(params):
    """Return parameters with which only the first block changes anything: what the others add is zero."""
    last = re.compile(r"(double|single)_blocks/(.*attn/proj|.*mlp/out_layer|linear2|processor/proj_lora\d?)/.*")
    first = lambda path: 1 if path.startswith("double") else 0
    return {path: x.at[first(path) :].set(0) if last.fullmatch(path) else x for path, x in params.items()}


@pytest.mark.parametrize("family", (pytest.param("flux1", marks=pytest.mark.slow), "flux2"))
def test_steps_with_a_cache(family):
    config, (cached, plain) = FAMILIES[family][1], programs(family)
    params, (step, _) = drawn(family), batch(family)
    later = step | {"img": step["img"] + 0.1, "timesteps": step["timesteps"] * 0.9}
    some = step | {"img": step["img"].at[0].add(1.0)}  # only the first sample changes
    empty = lambda threshold: StepCache.empty(
        jnp.full((BATCH,), threshold), step["img"].shape[1], config.hidden_size, jnp.float32
    )

    def check(params, threshold, steps, reused):
        cache = empty(threshold)
        for one in steps:
            got, cache = cached(params, one, cache)
            assert error(got, plain(params, one)) < 1e-5
        np.testing.assert_array_equal(cache.reused, reused)

    check(params, 0.0, (step, later), [0, 0, 0])
    check(params, 1e-4, (step, step, some), [1, 2, 2])
    check(silent(params), 10.0, (step, later), [1, 1, 1])
    _, cache = cached(params, step, empty(10.0))
    reused, cache = cached(params, later, cache)
    assert error(reused, plain(params, later)) > 1e-3 and (cache.reused == 1).all()
