# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""FLUX.2 from a weights directory to images, against diffusers' pipelines with the same weights and noise."""

import dataclasses
import shutil

import numpy as np
import oracle_flux2 as oracle
import oracle_pipeline
import pytest
import tiny
from oracle_pipeline import open_pipeline, photo, pixels
from PIL import Image

from uso_jax import params, weights
from uso_jax.commands import generate as generate_command
from uso_jax.common.errors import InputError
from uso_jax.inference import records, styles
from uso_jax.inference.options import GenerationOptions
from uso_jax.inference.pipeline import USOPipeline
from uso_jax.models.components import split_transformer
from uso_jax.models.flux2 import Flux2
from uso_jax.parallel import sharding
from uso_jax.weights import manifest_configs

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


def test_eight_devices_draw_what_one_draws(pipe):
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    many = USOPipeline.from_weights(pipe.pretrained.directory, mesh=mesh, compilation_cache=False)
    asked = dict(prompt=PROMPT, contents=contents(1), seed=[1, 2, 3])  # filled up to whole batches
    assert np.abs(pixels(many(**asked)) - pixels(pipe(**asked))).max() <= 1


def test_without_a_projector_styles_are_plain_references(pipe):
    fox, ink = contents(2)
    made = pipe(PROMPT, contents=[fox], styles=[ink], style_strength=0.5, seed=5)
    want = pipe(PROMPT, contents=[fox, ink], seed=5)
    np.testing.assert_array_equal(pixels(made), pixels(want))
    (note,) = made.records[0]["notes"]
    assert "plain references" in note and "style_strength has no effect" in note
    record = made.records[0]["request"]
    assert len(record["contents"]) == 2 and not record["styles"] and not record["style_strength"]
    with pytest.raises(InputError, match="needs a content image"):
        pipe(PROMPT, styles=[ink], keep_size=True)


def test_plain_references_have_regions_too(pipe, tmp_path):
    ink, felt = contents(2)
    images = dict(ink=ink, felt=felt, white=Image.new("L", (3, 5), 255), black=Image.new("L", (3, 5)))
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
    ink, felt, white, black = (str(tmp_path / f"{name}.png") for name in images)
    ask = dict(prompt=PROMPT, seed=5, num_steps=2, guidance=1.0, contents=[ink])
    both = pixels(pipe(**ask, styles=[felt, ink]))[0]
    for masks, others in (((white, None), [felt, ink]), ((None, black), [felt])):
        got = pipe(**ask, styles=[felt, ink], style_masks=masks)
        assert np.abs(pixels(got)[0] - pixels(pipe(**ask, styles=others))[0]).max() <= 1
    assert np.abs(pixels(got)[0] - both).max() > 2
    repeated = records.from_record(got.records[0], tmp_path)
    assert (len(repeated["contents"]), len(repeated["styles"])) == (1, 2)
    again = pipe.generate([pipe.request(**(repeated | {"options": GenerationOptions(**repeated["options"])}))])
    np.testing.assert_array_equal(pixels(again), pixels(got))
    assert again.records[0]["request"] == got.records[0]["request"]


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


def test_a_saved_style_serves_both_families(pipe, tmp_path):
    """A style file holds SigLIP's features; the projector that reads them belongs to one base."""
    first, second = oracle_pipeline.write(tmp_path / "flux"), tmp_path / "klein"
    shutil.copytree(pipe.pretrained.directory, second)
    shutil.copytree(first / "siglip", second / "siglip")
    config = dataclasses.replace(oracle.transformer_pair(guidance=False)[0].config, projector=oracle_pipeline.PROJECT)
    shapes = split_transformer(params.shapes(lambda rngs: Flux2(config, rngs=rngs)))["projector"]
    rng = np.random.default_rng(0)
    drawn = {path: rng.normal(0, 0.5, x.shape).astype(np.float32) for path, x in shapes.items()}
    weights.save(second, "projector", drawn, {"config": manifest_configs.describe("projector", config)})

    ink, ask = photo(4, 70, 33), dict(prompt=PROMPT, seed=3, num_steps=1)
    encoder = open_pipeline(first, only=["siglip"])
    file = styles.write_style(tmp_path / "ink.safetensors", encoder.encode_style([ink]))
    klein = open_pipeline(second)
    made = [pixels(klein(**ask, styles=references)) for references in ([str(file)], [ink], [])]
    np.testing.assert_array_equal(made[0], made[1])
    assert np.abs(made[0] - made[2]).max() > 2

    with pytest.raises(InputError, match=r"no projector.* cannot use the style .*ink.* pass the style's images"):
        pipe(**ask, styles=[str(file)])
    with pytest.raises(InputError, match=r"projector was trained for FLUX\.1, and the base is FLUX\.2"):
        open_pipeline(second, projector=first)
    foreign = dataclasses.replace(encoder.encode_style([ink]), tower="another")
    with pytest.raises(InputError, match="another SigLIP"):
        klein(**ask, styles=[foreign])


def test_the_command_draws_what_the_pipeline_draws(pipe, tmp_path):
    paths = [str(tmp_path / f"{number}.png") for number in range(2)]
    for image, path in zip(contents(2), paths, strict=True):
        image.save(path)
    weights_flags = [
        "--weights",
        str(pipe.pretrained.directory),
        "--save_path",
        str(tmp_path / "made"),
        "--no_compilation_cache",
    ]
    asked = ["--prompt", PROMPT, "--negative_prompt", "the snow", "--seed", "5", "--image_paths", *paths]
    generate_command.main([*weights_flags, *asked])
    (file,) = (tmp_path / "made").glob("*.png")
    with Image.open(file) as made:
        want = pipe(PROMPT, negative_prompt="the snow", contents=contents(2), seed=5)
        np.testing.assert_array_equal(np.asarray(made), pixels(want)[0])
