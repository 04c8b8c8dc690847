# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The first-block cache in the pipeline: images, records and programs."""

import numpy as np
import oracle_pipeline as oracle
import pytest
import tiny
from oracle_pipeline import pixels

from uso_jax.inference.options import GenerationOptions

pytestmark = pytest.mark.slow  # compiles or runs whole programs

ASK = dict(prompt="a red fox in the snow", content=oracle.photo(1, 90, 130), styles=[oracle.photo(4, 70, 33)])


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return oracle.open_pipeline(oracle.write(tmp_path_factory.mktemp("weights") / "tiny"))


def test_thresholds_share_a_program_and_images_do_not_depend_on_each_other(pipe):
    plain = pipe(**ASK, num_steps=6, seed=7)
    assert "reused_passes" not in plain.records[0] and "step_cache" not in plain.records[0]["request"]
    together = pipe(**ASK, num_steps=6, seed=7, step_cache=[1e-6, 0.5, 100.0])
    steps = len(pipe.sampler.steps)
    assert [record["reused_passes"] for record in together.records[::2]] == [0, 5]
    assert np.abs(pixels(together)[0] - pixels(plain)[0]).max() <= 1
    assert np.abs(pixels(together)[2] - pixels(plain)[0]).max() > 2
    for number, threshold in enumerate((1e-6, 0.5, 100.0)):
        alone = pipe(**ASK, num_steps=6, seed=7, step_cache=threshold)
        assert np.abs(pixels(alone)[0] - pixels(together)[number]).max() <= 1
        assert alone.records[0]["reused_passes"] == together.records[number]["reused_passes"]
    assert len(pipe.sampler.steps) - steps == 1  # for a batch of one, whatever the threshold
    assert together.records[1]["request"]["step_cache"] == 0.5


def test_two_passes_have_a_cache_each(pipe):
    ask = ASK | dict(num_steps=4, seed=7, negative_prompt="a dog", true_guidance=3.0, guidance_steps=(0.0, 0.5))
    exact = pipe(**ask)
    never, always = (pipe(**ask, step_cache=threshold) for threshold in (1e-6, 100.0))
    assert np.abs(pixels(never)[0] - pixels(exact)[0]).max() <= 1
    assert never.records[0]["reused_passes"] == 0
    # Two steps have a second pass; the first of each pass runs all blocks.
    assert always.records[0]["reused_passes"] == 3 + 1


def test_enlarging_runs_all_blocks(pipe):
    edit = dict(image=oracle.photo(2, 32, 32), strength=0.0)  # nothing is drawn before
    ask = ASK | edit | dict(num_steps=3, seed=7, upscale=2.0, upscale_strength=0.7)
    np.testing.assert_array_equal(pixels(pipe(**ask, step_cache=100.0))[0], pixels(pipe(**ask))[0])


def test_requests_with_and_without_a_cache_are_drawn_apart(pipe):
    requests = [pipe.request("a fox", options=GenerationOptions(seed=1, step_cache=x)) for x in (0.0, 0.3)]
    together, alone = pipe.generate(requests), pipe.generate(requests[:1])
    np.testing.assert_array_equal(pixels(together)[0], pixels(alone)[0])
    assert "reused_passes" in together.records[1] and "reused_passes" not in together.records[0]


def test_the_second_order_solver_uses_the_step_before(pipe):
    ask = dict(prompt="a fox", seed=7)
    one, two = (
        {solver: pixels(pipe(**ask, num_steps=n, solver=solver))[0] for solver in ("euler", "adams")} for n in (1, 2)
    )
    np.testing.assert_array_equal(one["euler"], one["adams"])  # the first step has none before it
    assert np.abs(two["euler"] - two["adams"]).max() > 2
