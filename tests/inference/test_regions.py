# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Masks of styles: what they say of each token, and what they do in a pipeline."""

import json

import numpy as np
import oracle_pipeline as oracle
import pytest
import tiny
from oracle_pipeline import pixels
from PIL import Image

from uso_jax.common.errors import InputError
from uso_jax.images import files
from uso_jax.images.reference import Reference
from uso_jax.inference import batch_jobs, records
from uso_jax.inference.options import GenerationOptions
from uso_jax.inference.regions import cover, read_masks, regions_of
from uso_jax.models.layers.regions import NOWHERE

WHITE, BLACK = (np.full((9, 7, 3), level, np.uint8) for level in (255, 0))  # of any size
LEFT = np.repeat([[255, 0]], 6, axis=0)[..., None].repeat(3, axis=-1).astype(np.uint8)  # 2 x 6 pixels
INK, FELT, CHALK = (oracle.photo(seed, 20, 20) for seed in (4, 5, 6))
ASK = dict(num_steps=4, seed=3)


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


# ---------------------------------------------------------------------------------------------------- weights


def weights(*masks, grid=(2, 4)):
    """Return how much each style counts for tokens of the target, and for other tokens by their owner."""
    found = regions_of([tuple(None if mask is None else Reference.of(mask) for mask in masks)], grid)
    return tuple(np.where(x[0] == NOWHERE, 0, np.exp(x[0])) for x in found)


def test_a_mask_is_the_mean_of_each_token():
    mask = np.zeros((16, 32, 3), np.uint8)
    mask[:8, 4:20] = 255
    mask[8:, :8] = 5  # as faint as the noise of a JPEG
    np.testing.assert_allclose(cover(Reference.of(mask), (2, 4)), [0.5, 1, 0.5, 0, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(cover(Reference.of(LEFT), (2, 4)), [1, 1, 0, 0] * 2)  # stretched


def test_other_tokens_weigh_a_style_by_its_part_of_their_region():
    target, others = weights(LEFT, 255 - LEFT, None)
    np.testing.assert_allclose(target, [[1, 0, 1], [1, 0, 1], [0, 1, 1], [0, 1, 1]] * 2)
    # Text and content; then the tokens of each style: those of different places do not see each other.
    np.testing.assert_allclose(others, [[0.5, 0.5, 1], [1, 0, 1], [0, 1, 1], [0.5, 0.5, 1]], atol=1e-6)
    np.testing.assert_array_equal(weights(WHITE, None)[1], np.ones((3, 2)))
    assert not weights(BLACK, WHITE)[1][[0, 2], 0].any()
    grey = np.full_like(WHITE, 51)
    np.testing.assert_allclose(weights(grey)[1], [[0.2], [0.2]], atol=1e-6)
    mixed = regions_of([(Reference.of(LEFT),), (), (None, Reference.of(LEFT))], (2, 4))
    assert mixed.target.shape == (3, 8, 2) and mixed.others.shape == (3, 3, 2)
    assert not mixed.target[1].any() and not mixed.others[1].any() and not mixed.target[0, :, 1].any()


@pytest.mark.parametrize(
    ("masks", "styles", "message"),
    [
        ([WHITE], 2, "1 masks for 2 styles"),
        ([WHITE, None], 1, "2 masks for 1 styles"),
        (WHITE, 1, "must be a list"),
        ([None, "absent.png"], 2, "mask of style 2 'absent.png'"),
    ],
)
def test_mistakes(masks, styles, message):
    with pytest.raises(InputError, match=message):
        read_masks(masks, styles)
    assert read_masks([None] * 3, 2) == read_masks(None, 2) == ()


# ---------------------------------------------------------------------------------------------------- images


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return oracle.open_pipeline(oracle.write(tmp_path_factory.mktemp("weights") / "tiny"))


def draw(pipe, *masks, styles=(INK, FELT), **more) -> np.ndarray:
    options = ASK | more
    return pixels(pipe("a red fox", styles=list(styles), style_masks=list(masks) or None, **options))[0]


def difference(a, b) -> int:
    return int(np.abs(a - b).max())


@pytest.mark.slow
def test_what_masks_of_one_level_equal(pipe):
    both, first = draw(pipe), draw(pipe, styles=[INK])
    assert difference(draw(pipe, WHITE, WHITE), both) <= 1
    assert difference(draw(pipe, WHITE, BLACK), first) <= 1 < difference(both, first)
    # One grey is a strength, and multiplies others.
    weaker = draw(pipe, style_strength=[0.5, 0.3])
    grey = draw(pipe, None, np.full_like(WHITE, 51), style_strength=[0.5, 1.5])
    assert difference(grey, weaker) <= 1 < difference(weaker, both)


@pytest.mark.slow
def test_a_style_stays_in_its_region(pipe):
    halves = draw(pipe, LEFT, 255 - LEFT)
    assert difference(halves, draw(pipe)) > 2
    change = np.abs(draw(pipe, LEFT, 255 - LEFT, styles=[INK, CHALK]) - halves).mean(axis=(0, 2))
    assert change[16:].mean() > 2 * change[:16].mean()  # the other half sees it through the image and the text alone


@pytest.mark.slow
def test_requests_with_and_without_masks_share_a_program(pipe):
    ask = lambda styles, masks=None: pipe.request(
        "a fox", styles=styles, style_masks=masks, options=GenerationOptions(**ASK)
    )
    requests = [
        ask([INK, FELT], [LEFT, 255 - LEFT]),
        ask([INK, FELT, CHALK]),
        ask([FELT], [LEFT]),
        ask([]),
        ask([pipe.encode_style([INK, CHALK]), FELT], [LEFT, None]),  # one style of two images
    ]
    before = len(pipe.sampler.steps)
    together = pixels(pipe.generate(requests))
    assert len(pipe.sampler.steps) == before + 1
    for number in (0, 1, 4):
        assert difference(pixels(pipe.generate([requests[number]]))[0], together[number]) <= 1


@pytest.mark.slow
def test_isolated_and_enlarged(pipe):
    content = oracle.photo(1, 32, 32)
    for more in (
        dict(content=content, isolated="content"),
        dict(content=content, isolated="all"),
        dict(upscale=1.5, upscale_strength=0.5, batch_size=2),
    ):
        first, same = (draw(pipe, WHITE, BLACK, styles=[INK, other], **more) for other in (FELT, CHALK))
        np.testing.assert_array_equal(first, same)  # what lies under black is not seen
        left, right = (draw(pipe, mask, 255 - mask, **more) for mask in (LEFT, 255 - LEFT))
        assert min(difference(left, right), difference(left, first), difference(right, first)) > 2
    assert left.shape == (48, 48, 3)


@pytest.mark.slow
def test_the_record_repeats_regions(pipe, tmp_path):
    INK.save(tmp_path / "ink.png"), FELT.save(tmp_path / "felt.png"), Image.fromarray(LEFT).save(tmp_path / "left.png")
    clear = Image.new("LA", (8, 8), (0, 255))
    clear.putpixel((0, 0), (0, 0))  # what is transparent counts
    clear.save(tmp_path / "corner.png")
    item = {"prompt": "a fox", "image_paths": ["", "ink.png", "felt.png", "ink.png"], "num_steps": 4}
    item["style_masks"] = ["left.png", "", "corner.png"]
    (tmp_path / "items.json").write_text(json.dumps([item]))
    job = batch_jobs.Job(tmp_path / "out")
    ((path, _),) = job.run(pipe, batch_jobs.read_items(tmp_path / "items.json"), lambda *_: None)
    record = files.read_record(path)
    assert [mask and mask["path"].rsplit("/")[-1] for mask in record["request"]["style_masks"]] == [
        "left.png", None, "corner.png"
    ]  # fmt: skip
    assert "mask of style 3 has transparent pixels" in " ".join(record["notes"])
    repeated = records.from_record(record, tmp_path)
    again = pipe.request(**(repeated | {"options": GenerationOptions(**repeated["options"])}))
    np.testing.assert_array_equal(pixels(pipe.generate([again]))[0], np.asarray(Image.open(path), int))
    without = pipe.request(**(repeated | {"options": again.options, "style_masks": None}))
    assert again.identity({}) != without.identity({})
    Image.fromarray(255 - LEFT).save(tmp_path / "left.png")
    with pytest.raises(InputError, match=r"left.png is no longer the file"):
        records.from_record(record, tmp_path)


def test_items_with_mistakes(tmp_path):
    for masks, message in (
        ("x.png", "must be a list of paths"),
        ([5], "must be a list"),
        (["x.png"], "does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            batch_jobs.parse_item({"prompt": "a", "style_masks": masks}, folder=str(tmp_path))
