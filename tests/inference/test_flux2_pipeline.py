# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""FLUX.2 from a weights directory to images, against diffusers' pipelines with the same weights and noise."""

import numpy as np
import oracle_flux2 as oracle
import pytest
import tiny
from oracle_pipeline import open_pipeline, photo, pixels

from uso_jax.inference.options import GenerationOptions

pytestmark = pytest.mark.slow  # compiles a program for each number of references

PROMPT = "a red fox in the snow"


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return open_pipeline(oracle.write(tmp_path_factory.mktemp("klein") / "w"))


def noise(pipe, seed: int) -> np.ndarray:
    tokens = np.prod(pipe.system.token_grid(oracle.HEIGHT, oracle.WIDTH))
    seeds = np.asarray([(0, seed)] * pipe.sampler.data_shards, np.uint32)
    return np.asarray(pipe.sampler.programs["noise"](seeds, int(tokens)))[:1]


def contents(number: int):
    """Return images whose long side is that of references, so that neither program resizes them."""
    sizes = ((oracle.REFERENCE, 64), (64, oracle.REFERENCE))
    return [photo(seed, *size) for seed, size in enumerate(sizes[:number])]


@pytest.mark.parametrize(
    "references, guidance, isolated",
    ((0, 4.0, "none"), (1, 4.0, "none"), (2, 4.0, "none"), (1, 1.0, "none"), (1, 1.0, "content"), (2, 1.0, "content")),
)
def test_pipeline(pipe, references, guidance, isolated):
    images = contents(references)
    options = {} if isolated == "content" else {"guidance_scale": guidance}
    want = oracle.image(pipe.pretrained.directory, noise(pipe, 5), PROMPT, images, isolated == "content", **options)
    made = pipe(PROMPT, contents=images, guidance=guidance, isolated=isolated, seed=5)
    assert np.abs(pixels(made)[0] - want).max() <= 2
    assert want.std() > 10


def test_references_that_are_too_large_are_noted(pipe):
    large = [photo(seed, 64, 64) for seed in (1, 2)]
    notes = lambda count, side: (
        pipe.request(PROMPT, contents=large[:count], options=GenerationOptions(content_ref=side)).notes
    )
    assert not notes(2, 1024) and not notes(1, 2024 // 4 * 4)
    assert any("1065024 pixels, more than the 1048576" in note for note in notes(2, 1032))
    assert any("more than the 4096576" in note for note in notes(1, 2040))


def test_batches_and_negative_prompts(pipe):
    together = pixels(pipe([PROMPT, PROMPT, "the snow"], seed=[1, 1, 2], negative_prompt=["", "the snow", ""]))
    alone = pixels(pipe(PROMPT, seed=1, negative_prompt="the snow"))[0]
    assert np.abs(together[1] - alone).max() <= 1
    assert np.abs(together[1] - together[0]).max() > 2
    record = pipe(PROMPT, seed=1, negative_prompt="the snow").records[0]["request"]
    assert record["negative_prompt"] == "the snow" and "isolated" not in record
