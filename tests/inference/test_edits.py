# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Editing an image: strength, masks, margins, guidance by a second pass, and variations."""

import json
import pathlib
import types

import jax.numpy as jnp
import numpy as np
import oracle_pipeline as oracle
import pytest
import tiny
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxInpaintPipeline
from diffusers.pipelines.flux import pipeline_flux_inpaint
from oracle_pipeline import pixels
from oracle_torch import autoencoder_pair
from PIL import Image

from uso_jax import flow
from uso_jax.common.errors import InputError
from uso_jax.inference import batch_jobs, records
from uso_jax.inference.options import GenerationOptions
from uso_jax.inference.tiling import Tiling

pytestmark = pytest.mark.slow  # compiles or runs whole programs

PHOTO = oracle.photo(1, 32, 32)
MASK = Image.fromarray(np.uint8(255) * np.pad(np.ones((8, 16), np.uint8), ((8, 16), (0, 16))))  # whole tokens
EDIT = dict(prompt="a red fox", image=PHOTO, mask=MASK, num_steps=4)


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return oracle.open_pipeline(oracle.write(tmp_path_factory.mktemp("weights") / "tiny"))


def one(result) -> np.ndarray:
    return pixels(result)[0]


def difference(a, b) -> int:
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


def decoded(pipe, image: Image.Image) -> np.ndarray:
    """Return what the autoencoder makes of an image."""
    tokens = pipe.sampler.latents(np.asarray(image))[None]
    parts = pipe.sampler._parts["autoencoder"]
    return np.asarray(pipe.system.decode_tokens(parts, jnp.asarray(tokens), image.height, image.width))[0]


@pytest.fixture
def theirs(pipe, monkeypatch):
    """Return a function that edits by diffusers' pipeline from our noise."""
    codec = autoencoder_pair()[1]
    sizes = autoencoder_pair()[0].config
    codec.register_to_config(scaling_factor=sizes.scale_factor, shift_factor=sizes.shift_factor)
    inner = codec.encode  # the posterior's mean in place of a sample
    monkeypatch.setattr(codec, "encode", lambda x: types.SimpleNamespace(latents=inner(x).latent_dist.mode()))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)  # the times are passed in
    made = FluxInpaintPipeline(scheduler, codec, None, None, None, None, oracle.tensors()[2])
    made.set_progress_bar_config(disable=True)

    def edit(seed, strength, num_steps, true_guidance=1.0):
        drawn = pipe.sampler.programs["noise"](np.asarray([[0, seed]], np.uint32), 16)
        noise = torch.from_numpy(np.asarray(flow.unpack(drawn, 4, 4)).transpose(0, 3, 1, 2).copy())
        monkeypatch.setattr(pipeline_flux_inpaint, "randn_tensor", lambda *_, **__: noise)
        texts = dict(zip(("prompt_embeds", "pooled_prompt_embeds"), oracle.encode_text("a red fox"), strict=True))
        names = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")
        texts |= dict(zip(names, oracle.encode_text("a house"), strict=True))
        sigmas = pipe.system.schedule(num_steps, 32, 32, "upstream")[:-1]
        (image,) = made(
            **texts, image=PHOTO, mask_image=MASK, height=32, width=32, num_inference_steps=num_steps, sigmas=sigmas,
            strength=strength, guidance_scale=2.0, true_cfg_scale=true_guidance, output_type="np",
        ).images  # fmt: skip
        return np.rint(255 * image)

    return edit


@pytest.mark.parametrize(("strength", "true_guidance"), [(1.0, 1.0), (0.6, 1.0), (0.6, 2.5)])
def test_inpainting_equals_diffusers(pipe, theirs, strength, true_guidance):
    more = dict(strength=strength, guidance=2.0, seed=5)
    if true_guidance != 1:
        more |= dict(true_guidance=true_guidance, negative_prompt="a house")
    got, want = one(pipe(**EDIT, **more)), theirs(5, strength, 4, true_guidance)
    drawn = np.asarray(MASK) > 0
    assert difference(got[drawn], want[drawn]) <= 2
    assert difference(got[drawn], np.asarray(PHOTO)[drawn]) > 20
    assert difference(got[~drawn], np.asarray(PHOTO)[~drawn]) == 0  # theirs decodes it again


def test_a_mask_between_tokens_is_drawn_whole_and_pasted_to_the_pixel(pipe):
    grey = np.zeros((32, 32), np.uint8)
    grey[9:13, 3:11], grey[13, 3:11] = 255, 51
    got = one(pipe(**(EDIT | dict(mask=Image.fromarray(grey))), strength=1.0))
    photo = np.asarray(PHOTO, int)
    assert difference(got[grey == 0], photo[grey == 0]) == 0
    assert difference(got[grey == 255], photo[grey == 255]) > 20
    white = one(pipe(**(EDIT | dict(mask=Image.fromarray(np.where(grey > 0, np.uint8(255), grey)))), strength=1.0))
    soft = grey == 51  # a fifth of what a white mask shows
    assert difference(got[soft], np.rint(0.2 * white[soft] + 0.8 * photo[soft])) <= 1


def test_transparency_of_a_mask_counts_before_its_colours(pipe, tmp_path):
    layers = np.zeros((32, 32, 4), np.uint8)
    layers[8:16, :16], layers[:8], layers[16:], layers[8:16, 16:] = (0, 0, 0, 0), 255, 255, 255
    Image.fromarray(layers).save(tmp_path / "mask.png")
    for mask in (Image.fromarray(layers), tmp_path / "mask.png"):
        result = pipe(**(EDIT | dict(mask=mask)), strength=1.0, seed=5)
        assert difference(one(result), one(pipe(**EDIT, strength=1.0, seed=5))) == 0
        assert "has transparent pixels" in result.records[0]["notes"][0]


def test_strength_leaves_out_the_first_steps(pipe):
    plain, edit = one(pipe("a red fox", num_steps=4)), dict(prompt="a red fox", image=PHOTO, num_steps=4)
    assert difference(one(pipe(**edit, strength=1.0)), plain) <= 1
    assert difference(one(pipe(**edit, strength=0.0)), PHOTO) == 0
    said = []
    half = one(pipe(**edit, strength=0.5, progress=lambda *report: said.append(report)))
    assert said[-1] == ("Decoding", 2, 2)
    assert difference(half, plain) > 2 and difference(half, decoded(pipe, PHOTO)) > 2


def test_margins_are_drawn_around_the_image(pipe):
    result = pipe("a red fox", image=PHOTO, outpaint=(8, 0, 16, 8), strength=1.0)
    got = one(result)
    assert got.shape == (40, 56, 3)
    assert difference(got[:32, 8:40], PHOTO) == 0
    assert np.abs(np.diff(got[:, 48:], axis=1)).max() > 0  # and not the edge repeated
    with pytest.raises(InputError, match="outpaint needs an image to edit"):
        pipe("a fox", outpaint=8)


def test_sizes(pipe):
    photo = oracle.photo(2, 45, 34)
    result = pipe("a fox", image=photo, strength=0.3)
    assert result.images[0].size == (40, 32)
    assert result.records[0]["notes"] == ["the image was cut to 40 x 32, whole multiples of 8 pixels"]
    (note,) = pipe.request("a fox", image=photo, options=GenerationOptions(width=24, height=32)).notes
    assert note == "the image was cut to 24 x 32, which has another shape"
    kept = pipe("a fox", image=photo, mask=Image.new("L", photo.size), strength=0.3)
    assert difference(one(kept), np.asarray(photo)[1:33, 2:42]) == 0
    assert pipe("a fox", image=photo, width=24, strength=0.3).images[0].size == (24, 16)
    assert pipe("a fox", image=photo, width=24, height=32, strength=0.3).images[0].size == (24, 32)


def test_a_content_mask_hides_the_rest(pipe):
    content, other = np.asarray(oracle.photo(4, 32, 32)).copy(), np.asarray(oracle.photo(6, 32, 32))
    mask = np.zeros((32, 32, 3), np.uint8)
    mask[4:8, 10:20] = 255  # touches the second and third token of the first row
    draw = lambda content, **more: one(pipe("a red fox", content=content, **more))
    masked = draw(content, content_mask=mask)
    assert difference(masked, draw(content)) > 2
    whole = np.full_like(mask, 255)
    assert difference(draw(content, content_mask=whole), draw(content)) <= 1
    request = pipe.request("a fox", contents=[content], content_mask=mask)
    assert np.flatnonzero(request.counted).tolist() == [1, 2]
    assert draw(other, content_mask=mask).shape == masked.shape
    for arguments, message in (
        (dict(content_mask=mask), "content_mask needs a content image"),
        (dict(content=oracle.photo(1, 30, 32), content_mask=mask), "same size, not 32 x 32 and 30 x 32"),
        (dict(content=content, content_mask=np.zeros_like(mask)), "black everywhere"),
    ):
        with pytest.raises(InputError, match=message):
            pipe("a fox", **arguments)


def test_a_second_pass_guides_in_its_steps_alone(pipe):
    draw = lambda **more: one(pipe("a red fox", negative_prompt="a house", num_steps=4, **more))
    plain, guided = draw(), draw(true_guidance=3.0)
    assert difference(plain, guided) > 2
    late = draw(true_guidance=3.0, guidance_steps=(0.5, 1.0))
    assert difference(late, plain) > 2 and difference(late, guided) > 2
    assert difference(draw(true_guidance=3.0, guidance_steps=(0.1, 0.2)), plain) == 0
    half = dict(image=PHOTO, strength=0.5, true_guidance=3.0)  # which leaves out the first half of the schedule
    assert difference(draw(**half, guidance_steps=(0.0, 0.5)), draw(image=PHOTO, strength=0.5)) == 0
    with pytest.raises(InputError, match="does not go with isolated references"):
        draw(content=PHOTO, isolated="content", true_guidance=3.0)
    assert difference(draw(true_guidance=1.0001), plain) <= 1
    (note,) = pipe.request("a fox", options=GenerationOptions(negative_prompt="a house")).notes
    assert "set true_guidance" in note


def test_variations_lie_between_two_seeds(pipe):
    draw = lambda **more: one(pipe("a red fox", **more))
    first, second = draw(seed=1), draw(seed=2)
    between = [draw(seed=1, variation_seed=2, variation=v) for v in (0.0, 0.1, 1.0)]
    assert difference(between[0], first) == 0 and difference(between[2], second) <= 1
    assert 0 < np.abs(between[1] - first).mean() < np.abs(between[1] - second).mean()


# ---------------------------------------------------------------------------------------------------- enlarging


@pytest.mark.parametrize("multiple", [1, 4])
def test_tiles_cover_the_image_and_blend_to_it(multiple):
    tiling = Tiling.of((7, 9), (4, 5), multiple)
    assert len(tiling.index) % multiple == 0 and set(tiling.index.flat) == set(range(63))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 63, 2)), jnp.float32)
    np.testing.assert_allclose(tiling.join(tiling.cut(x)), x, atol=1e-6)
    rows = tiling.index.reshape(-1, 4, 5)
    assert (np.diff(rows, axis=1) == 9).all() and (np.diff(rows, axis=2) == 1).all()
    assert Tiling.of((4, 5), (4, 5)).index.shape == (1, 20)
    lower = tiling.weight.reshape(-1, 4, 5)[0]
    assert lower[0, 0] == 1 and 0 < lower[-1, -1] < 1  # an overlap fades


def test_an_enlarged_image_is_drawn_in_tiles(pipe):
    small = pipe("a red fox", num_steps=4).images[0]
    said = []
    large = pipe("a red fox", num_steps=4, upscale=1.5, upscale_strength=0.5, progress=lambda *one: said.append(one))
    assert large.images[0].size == (48, 48) and said[-1] == ("Decoding", 6, 6)
    plain = np.asarray(small.resize((48, 48), Image.Resampling.LANCZOS))
    assert difference(one(pipe("a red fox", num_steps=4, upscale=1.5, upscale_strength=0.0)), plain) == 0
    assert difference(one(large), plain) > 2
    # How many tiles run at once changes nothing but memory.
    by_one = pipe("a red fox", num_steps=4, upscale=1.5, upscale_strength=0.5, batch_size=1)
    assert difference(one(by_one), one(large)) <= 1


def test_an_enlarged_edit_keeps_what_its_mask_keeps(pipe):
    got = one(pipe(**EDIT, strength=1.0, upscale=1.5, upscale_strength=0.5))
    kept = np.asarray(MASK.resize((48, 48), Image.Resampling.BILINEAR)) == 0
    want = np.asarray(PHOTO.resize((48, 48), Image.Resampling.LANCZOS), int)
    assert kept.sum() > 1000 and np.abs(got - want)[kept].mean() < 1  # the mask's rim is resized with it


def test_an_image_is_encoded_in_tiles(pipe, tmp_path):
    tiled = oracle.open_pipeline(pipe.pretrained.directory, tile=64)
    photo = np.asarray(oracle.photo(1, 96, 80))
    whole = pipe.sampler.latents(photo)
    parts = tiled.sampler.latents(photo, tiled=True)
    assert whole.shape == parts.shape and np.abs(whole - parts).max() > 0
    np.testing.assert_array_equal(
        tiled.sampler.latents(photo[:64, :64], tiled=True), pipe.sampler.latents(photo[:64, :64])
    )
    np.testing.assert_array_equal(tiled.sampler.latents(photo), whole)  # content images stay as they were
    corner = whole.reshape(10, 12, -1)[:3, :3], parts.reshape(10, 12, -1)[:3, :3]
    assert np.abs(corner[0] - corner[1]).mean() < np.abs(corner[0]).std()  # normalisation sees other pixels


def test_one_tile_equals_image_to_image(pipe):
    """An image that needs no tiles: enlarged by less than a token, its one tile is the image."""
    small = pipe("a red fox", num_steps=4).images[0]
    want = pipe("a red fox", image=small, num_steps=4, strength=0.5)
    assert difference(one(pipe("a red fox", num_steps=4, upscale=1.1, upscale_strength=0.5)), one(want)) <= 1


def test_options_without_effect_change_no_identity(pipe):
    plain = pipe.request("a fox").identity({})
    for name, value in dict(strength=0.1, upscale_strength=0.5, variation_seed=9).items():
        assert pipe.request("a fox", options=GenerationOptions(**{name: value})).identity({}) == plain


def test_edits_share_a_batch_with_edits_only(pipe):
    other = oracle.photo(3, 32, 32)
    settings = dict(options=GenerationOptions(strength=0.5, num_steps=4))
    requests = [
        pipe.request("a fox", image=PHOTO, mask=MASK, **settings),
        pipe.request("a cat", image=other, **settings),
        pipe.request("a cat", options=settings["options"]),
    ]
    together = pixels(pipe.generate(requests))
    for one_request, got in zip(requests, together, strict=True):
        assert difference(pixels(pipe.generate([one_request]))[0], got) <= 1


def test_the_record_repeats_an_edit(pipe, tmp_path):
    PHOTO.save(tmp_path / "photo.png"), MASK.save(tmp_path / "mask.png")
    (tmp_path / "items.json").write_text(
        json.dumps([{"prompt": "a fox", "image": "photo.png", "mask": "mask.png", "strength": 0.6, "outpaint": 8}])
    )
    items = batch_jobs.read_items(tmp_path / "items.json")
    job = batch_jobs.Job(tmp_path / "out")
    ((path, _),) = job.run(pipe, items, lambda *_: None)
    record = json.loads(pathlib.Path(path).with_suffix(".json").read_text())
    assert set(record["request"]) >= {"image", "mask", "strength", "outpaint"}
    repeated = records.from_record(record, tmp_path)
    again = pipe.request(**(repeated | {"options": GenerationOptions(**repeated["options"])}))
    np.testing.assert_array_equal(one(pipe.generate([again])), np.asarray(Image.open(path), int))
    assert again.identity({}) != pipe.request("a fox", image=PHOTO, options=again.options).identity({})
    oracle.photo(9, 32, 32).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match=r"mask.png is no longer the file"):
        records.from_record(record, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(mask=MASK), "a mask needs an image to edit"),
        (dict(image=PHOTO, mask=oracle.photo(1, 30, 32)), "the same size, not 30 x 32 and 32 x 32"),
        (dict(image=PHOTO, strength=1.5), "strength must be a number from 0 to 1, not 1.5"),
        (dict(image=PHOTO, outpaint=(1, 2)), "outpaint must be pixels at the left, top, right and bottom, not 2"),
        (dict(image=PHOTO, outpaint=(0, -1, 0, 0)), "outpaint must be a whole number from 0"),
        (dict(image=PHOTO, outpaint=8000), "with these margins would have 257025024"),
        (dict(image=oracle.photo(1, 5, 90)), "the image would be 5 x 90 pixels"),
        (dict(image=PHOTO, content=PHOTO, keep_size=True), "does not go with an image to edit"),
        (dict(guidance_steps=(0.6, 0.5)), "guidance_steps must be two numbers from 0 to 1"),
        (dict(variation=2.0), "variation must be a number from 0 to 1"),
    ],
)
def test_mistakes(pipe, arguments, message):
    with pytest.raises(InputError, match=message):
        pipe("a fox", **arguments)
