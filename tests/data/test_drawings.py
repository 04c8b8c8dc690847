# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Procedural triplets: reproducible, exact counterfactuals, disjoint splits, prompts by convention."""

import dataclasses
import subprocess
import sys
import zlib

import numpy as np
import pytest

from uso_jax.common.errors import InputError
from uso_jax.data.drawings import look, palette
from uso_jax.data.drawings.canvas import Pose
from uso_jax.data.drawings.look import FAMILIES, HELDOUT_FAMILIES, PLAIN, STYLE_NAMES, DrawingStyle, combinations
from uso_jax.data.drawings.source import ProceduralSource
from uso_jax.data.drawings.styles import STYLES, render
from uso_jax.data.drawings.subjects import SUBJECTS, subject_names
from uso_jax.data.splits import SPLITS
from uso_jax.data.triplet import Triplet
from uso_jax.evaluation.metrics.counterfactual import Counterfactuals, Styles, style_sets

IMAGE = np.zeros((4, 4, 3), np.uint8)
YELLOW, BLUE = (0.9, 0.8, 0.1), (0.1, 0.1, 0.4)
LOUD = DrawingStyle(
    "flat", YELLOW, BLUE, palette.ink_for(YELLOW, BLUE), "yellow", "blue", period=0.42, angle=0.7, phase=0.3
)


def take(count, **options):
    source = ProceduralSource(**options)
    return [source[index] for index in range(count)]


def flat_images(images):
    return np.stack(images).reshape(len(images), -1).astype(np.float32)


def apart(images):
    """Return the mean difference, 0..255, of the two most similar images."""
    flat = flat_images(images)
    return min(np.abs(flat[index + 1 :] - flat[index]).mean(1).min() for index in range(len(flat) - 1))


def same(a, b):
    images = [
        np.array_equal(a.target, b.target),
        *(np.array_equal(p, q) for p, q in zip(a.styles, b.styles, strict=True)),
    ]
    return all(images) and np.array_equal(a.content, b.content) and (a.prompt, a.key) == (b.prompt, b.key)


def test_example_depends_on_seed_split_and_index_alone():
    source, again = ProceduralSource(seed=3), ProceduralSource(seed=3, length=50)
    backwards = {index: again[index] for index in reversed(range(8))}
    assert all(same(source[index], backwards[index]) for index in range(8))
    assert not same(source[0], source[1])
    assert not same(source[0], ProceduralSource(seed=4)[0])
    assert not same(source[0], ProceduralSource(seed=3, split="heldout_styles")[0])


def test_numpy_index_and_end():
    source = ProceduralSource(length=5)
    assert same(source[np.int64(4)], source[4])
    with pytest.raises(IndexError):
        source[5]


@pytest.mark.parametrize("size", [16, 32, 50])
def test_every_image_is_its_render(size):
    for triplet in take(30, size=size, num_styles=2):
        meta = triplet.meta
        subject = SUBJECTS[meta["subject"]]
        assert np.array_equal(triplet.target, render(subject, meta["pose"], meta["style"], size))
        assert np.array_equal(triplet.content, render(subject, meta["content_pose"], meta["content_style"], size))
        assert (meta["content_pose"] == meta["pose"]) == (triplet.layout == "preserved")
        assert len(triplet.styles) == 2 and meta["subject"] not in meta["style_subjects"]


def test_same_example_in_another_process():
    code = "from uso_jax.data.drawings.source import ProceduralSource as S; import zlib; t = S(seed=5, size=16)[7]\n"
    code += "print(zlib.crc32(t.content.tobytes() + t.styles[0].tobytes() + t.target.tobytes()), t.prompt)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    triplet = ProceduralSource(seed=5, size=16)[7]
    pixels = b"".join(image.tobytes() for image in (triplet.content, *triplet.styles, triplet.target))
    assert run.stdout.rstrip("\n") == f"{zlib.crc32(pixels)} {triplet.prompt}"


def test_counterfactuals_change_one_thing():
    """Another subject changes nothing outside both; another style keeps the position of the subject."""
    for triplet in take(10, styles=["flat"], preserved=0.0, size=48):
        meta, subject = triplet.meta, SUBJECTS[triplet.meta["subject"]]
        ground = (255 * np.array(meta["style"].ground, np.float32) + 0.5).astype(np.uint8)
        free = (triplet.target == ground).all(-1)
        other = render(SUBJECTS[meta["style_subjects"][0]], meta["pose"], meta["style"], 48)
        assert ((other == ground).all(-1) & free).mean() > 0.2 and not np.array_equal(other, triplet.target)
        recoloured = dataclasses.replace(meta["style"], fill=(1.0, 0.0, 1.0), ink=(1.0, 0.0, 1.0))
        changed = (render(subject, meta["pose"], recoloured, 48) != triplet.target).any(-1)
        # Where a pixel has a trace of the subject, rounding may hide it in one of the two.
        assert (changed & free).mean() < 0.01 and changed.mean() > 0.03


@pytest.mark.slow
def test_a_style_is_told_by_patches_whatever_is_drawn_where():
    source = ProceduralSource(split="heldout", seed=3, tasks={"style": 1.0})
    triplets = [source[index] for index in range(8)]
    judge = Styles(source, triplets)
    assert all(map(np.array_equal, style_sets(source, triplets[0]), style_sets(source, triplets[0])))
    targets = np.stack([triplet.target for triplet in triplets])
    assert judge.per_image(targets)["style_accuracy"].mean() >= 7 / 8
    assert judge.per_image(np.stack([triplet.styles[0] for triplet in triplets]))["style_accuracy"].mean() >= 6 / 8
    assert judge.per_image(np.roll(targets, 1, axis=0))["style_accuracy"].mean() <= 1 / 8


def test_verdicts_of_drawings_with_one_fault():
    """Each verdict forgives what it does not ask for: a flat look, and where a texture begins."""
    source = ProceduralSource(split="heldout", seed=3, size=48, preserved=1.0, styles=["checker", "stripes"])
    triplets = [source[index] for index in range(2)]
    judge = Counterfactuals(source, triplets)

    def verdicts(**changes):
        images = []
        for triplet in triplets:
            style = dataclasses.replace(triplet.meta["style"], **changes)
            images.append(render(SUBJECTS[triplet.meta["subject"]], triplet.meta["pose"], style, 48))
        return {name: values.mean() for name, values in judge.per_image(np.stack(images)).items()}

    assert verdicts() == {
        "content_accuracy": 1.0,
        "content_flat_accuracy": 1.0,
        "style_accuracy": 1.0,
        "style_patch_accuracy": 1.0,
        "mse": 0.0,
    }
    flat, moved = verdicts(name="flat"), verdicts(phase=triplets[0].meta["style"].phase + 0.5)
    assert flat["content_flat_accuracy"] == 1.0 and flat["style_accuracy"] < 1.0 and flat["style_patch_accuracy"] == 0.0
    assert moved["style_patch_accuracy"] == 1.0 and moved["mse"] > 0.01
    wrong = judge.per_image(np.stack([source.flat_subjects(triplet)[7] for triplet in triplets]))
    assert not wrong["content_accuracy"].any() and not wrong["content_flat_accuracy"].any()
    without_styles = Counterfactuals(source, triplets[:1], styles=False)
    assert not {"style_accuracy", "style_patch_accuracy"} & set(without_styles.per_image(triplets[0].target[None]))


def test_subjects_can_be_told_apart_in_every_style():
    for name in STYLES:
        style = dataclasses.replace(LOUD, name=name)
        images = [render(subject, Pose(), style, 32) for subject in SUBJECTS.values()]
        assert apart(images) > 3.0, name


def test_subjects_are_found_again_by_nearest_neighbour():
    """A slightly moved and rotated subject is still nearest to itself."""
    images = flat_images([render(subject, Pose(0.8), LOUD, 32) for subject in SUBJECTS.values()])
    moved = flat_images([render(subject, Pose(0.78, 0.05, 0.01), LOUD, 32) for subject in SUBJECTS.values()])
    nearest = [int(np.abs(images - image).mean(1).argmin()) for image in moved]
    assert nearest == list(range(len(SUBJECTS)))


@pytest.mark.parametrize("size", [32, 64])
def test_styles_can_be_told_apart(size):
    for subject in ("house", "rocket", "smiling face"):
        images = [render(SUBJECTS[subject], Pose(), dataclasses.replace(LOUD, name=name), size) for name in STYLES]
        assert apart(images) > 5.0


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (
            {"period": 0.5},
            ("halftone", "pixel", "stripes", "mosaic", "stained glass", "scanlines", "ripple", "checker"),
        ),
        ({"angle": 1.2}, ("halftone", "stripes", "hatching", "split", "sketch", "low-poly", "misprint")),
        (
            {"weight": 0.17},
            ("outline", "neon", "shadow", "sticker", "paper cut", "emboss", "clay", "ink wash", "glitch"),
        ),
        ({"phase": 0.8}, ("stripes", "polka", "pixel", "rays", "watercolor", "stipple", "engraving", "cross-stitch")),
    ],
)
def test_parameters_are_seen(change, names):
    for name in names:
        style = dataclasses.replace(LOUD, name=name)
        pair = [render(SUBJECTS["house"], Pose(), s, 32) for s in (style, dataclasses.replace(style, **change))]
        assert apart(pair) > 1.0, name


def test_families():
    assert len(FAMILIES) == 13 and len(STYLE_NAMES) >= 26 and list(STYLES)[-1] == list(FAMILIES)[-1] == PLAIN
    assert [name for names in FAMILIES.values() for name in names] == list(STYLES) == [*STYLE_NAMES, PLAIN]
    assert all(2 <= len(names) <= 3 for family, names in FAMILIES.items() if family != PLAIN)
    assert len(HELDOUT_FAMILIES) == 2 and set(HELDOUT_FAMILIES) < set(FAMILIES)


def test_subjects_fit_their_field_and_fill_some_of_it():
    white = DrawingStyle("flat", (1.0,) * 3, (0.0,) * 3, (1.0,) * 3, "white", "black")
    for name, subject in SUBJECTS.items():
        image = render(subject, Pose(1.0), white, 64)
        covered = (image[..., 0] > 127).mean()
        edge = max(image[0].max(), image[-1].max(), image[:, 0].max(), image[:, -1].max())
        assert 0.08 < covered < 0.8 and edge < 255, (name, covered, edge)


def in_band(name, value):
    low, high = look.RANGES[name]
    return look.BAND[0] <= (value - low) / (high - low) < look.BAND[1]


@pytest.mark.parametrize("split", SPLITS)
def test_splits_hold_out_what_they_say(split):
    seen, heldout = set(subject_names(heldout=False)), set(subject_names(heldout=True))
    assert len(seen) >= 62 and 9 <= len(heldout) <= 10
    for triplet in take(150, split=split, size=8):
        style = triplet.meta["style"]
        assert triplet.meta["subject"] in (heldout if split in ("heldout", "heldout_subjects") else seen)
        assert set(triplet.meta["style_subjects"]) <= seen
        assert (style.family in HELDOUT_FAMILIES) == (split == "heldout_families")
        strange = split in ("heldout", "heldout_styles")
        assert ((style.fill_name, style.ground_name) in combinations(style.name, True)) == strange
        assert in_band("period", style.period) == in_band("angle", style.angle) == strange
        assert style.is_heldout == (split not in ("train", "heldout_subjects"))
        assert all(low <= getattr(style, name) <= high for name, (low, high) in look.RANGES.items())


def test_each_style_subject_and_parameter_is_drawn():
    triplets = take(1500, size=8)
    assert {t.meta["style"].name for t in triplets} == {
        n for n in STYLE_NAMES if look.FAMILY_OF[n] not in HELDOUT_FAMILIES
    }
    assert {t.meta["subject"] for t in triplets} == set(subject_names(heldout=False))
    for name in look.RANGES:
        low, high = look.RANGES[name]
        values = sorted((getattr(t.meta["style"], name) - low) / (high - low) for t in triplets)
        assert values[0] < 0.02 and values[-1] > 0.98 and np.diff(values).max() < 0.23
    families = {t.meta["family"] for t in take(60, size=8, split="heldout_families")}
    assert families == set(HELDOUT_FAMILIES)


def test_each_style_and_pair_is_seen_in_training():
    for name in STYLE_NAMES:
        train, held = set(combinations(name, False)), set(combinations(name, True))
        assert not train & held and train | held == set(palette.pairs()) and len(held) > 8
    assert set().union(*(combinations(name, False) for name in STYLE_NAMES)) == set(palette.pairs())


def test_labels_are_places_in_the_tables():
    for triplet in take(60, size=8, tasks={"text": 1}, plain=0.5):
        meta, labels = triplet.meta, triplet.meta["labels"]
        assert list(SUBJECTS)[labels["subject"]] == meta["subject"]
        assert list(STYLES)[labels["style"]] == meta["style"].name
        assert list(FAMILIES)[labels["family"]] == meta["family"] == meta["style"].family
        assert all(type(value) is int for value in labels.values()) and set(labels) == {"subject", "style", "family"}


def test_same_look_copies_the_content():
    kept = take(40, size=16, tasks={"subject": 1}, same_look=1.0, preserved=0.5)
    assert {t.layout for t in kept} == {"preserved", "shifted"}
    for triplet in kept:
        assert triplet.meta["style"] == triplet.meta["content_style"] and triplet.meta["family"] == PLAIN
        assert np.array_equal(triplet.content, triplet.target) == (triplet.layout == "preserved")
        assert "style" not in triplet.prompt
    share = np.mean(
        [
            np.array_equal(t.content, t.target)
            for t in take(300, size=8, tasks={"subject": 1}, same_look=0.4, preserved=1.0)
        ]
    )
    assert 0.3 < share < 0.5
    assert not any(np.array_equal(t.content, t.target) for t in take(40, tasks={"subject": 1}, preserved=1.0))


def test_place_words():
    for triplet in take(60, size=8, place_words=1.0, empty_prompt=0.0):
        where = triplet.meta["pose"].words
        assert triplet.prompt.endswith(f", {where}") == (triplet.layout == "shifted")
    assert not any(" at the " in t.prompt or "in the middle" in t.prompt for t in take(60, size=8))
    assert Pose(0.65, -0.3, -0.2, 0.2).words == "small at the top left, turned right"
    assert Pose(0.75, 0.0, 0.0, -0.1).words == "at the bottom"
    assert Pose(0.85, 0.3, 0.02, 0.0).words == "large in the middle, turned left"


def test_prompts_by_layout_and_style_words():
    triplets = take(80, size=8, empty_prompt=1.0)
    assert all((t.prompt == "") == (t.layout == "preserved") for t in triplets)
    for triplet in triplets:
        if triplet.prompt:
            assert SUBJECTS[triplet.meta["subject"]].phrase in triplet.prompt
            assert triplet.meta["style"].fill_name + " on" not in triplet.prompt
    for triplet in take(20, size=8, tasks={"text": 1}, style_words=1.0):
        assert triplet.prompt == f"{SUBJECTS[triplet.meta['subject']].phrase}, {triplet.meta['style'].words}"


def test_subject_words():
    """Names are left out where a content image shows the subject, and nothing else of the triplet changes."""
    named = take(300, size=8, tasks={"subject": 1, "text": 1}, plain=1.0)
    some = take(300, size=8, tasks={"subject": 1, "text": 1}, plain=1.0, subject_words=0.3)
    nameless = [triplet for triplet in some if "this" in triplet.prompt.split()]
    shown = [triplet for triplet in some if triplet.content is not None]
    assert 0.6 < len(nameless) / len(shown) < 0.8
    assert {t.key for t in nameless} <= {t.key for t in shown}
    for with_name, triplet in zip(named, some, strict=True):
        phrase = SUBJECTS[triplet.meta["subject"]].phrase
        assert np.array_equal(with_name.target, triplet.target)
        assert with_name.prompt == triplet.prompt.replace("this", phrase)


def test_article():
    assert SUBJECTS["umbrella"].phrase == "an umbrella" and SUBJECTS["letter A"].phrase == "a letter A"
    assert SUBJECTS["glasses"].phrase == "a pair of glasses"


def test_tasks_carry_their_conditions():
    mix = {"style_subject": 4, "subject": 2, "style": 1, "text": 3}
    triplets = take(600, size=8, tasks=mix)
    counts = {task: sum(t.task == task for t in triplets) / 600 for task in mix}
    assert all(abs(counts[task] - mix[task] / 10) < 0.07 for task in mix), counts
    for triplet in triplets:
        assert (triplet.content is not None) == (triplet.task in ("style_subject", "subject"))
        assert bool(triplet.styles) == (triplet.task in ("style_subject", "style"))
        assert triplet.prompt or triplet.layout == "preserved"
        if triplet.task == "subject" and triplet.meta["family"] != PLAIN:
            assert triplet.meta["style"].words in triplet.prompt


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "unknown split 'test'; use one of train"),
        ({"subjects": ["star", "dragon"]}, "unknown subject 'dragon'"),
        ({"families": ["cubism"]}, "unknown style family 'cubism'; known are flat, line"),
        ({"styles": ["cubism"]}, "unknown style 'cubism'; known are flat, split"),
        ({"styles": ["plain"]}, "unknown style 'plain'"),
        ({"styles": ["low-poly"]}, "split 'train' has none of the styles low-poly"),
        ({"split": "heldout_families", "families": ["flat"]}, "held-out families are hatching, facet"),
        ({"styles": ["neon"], "families": ["flat"]}, "none of the styles neon of flat"),
        ({"same_look": -0.1}, "same_look is -0.1"),
        ({"place_words": 2}, "place_words is 2"),
        ({"subject_words": -1}, "subject_words is -1"),
        ({"subjects": ["star"]}, "two seen subjects"),
        ({"tasks": {"inpaint": 1}}, "style_subject"),
        ({"tasks": {"text": 0}}, "positive"),
        ({"preserved": 1.5}, "preserved is 1.5"),
        ({"size": 4}, "at least 8"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(InputError, match=message):
        ProceduralSource(**options)


def test_restricted_source():
    for triplet in take(20, size=8, subjects=["heart", "star", "fish"], styles=["neon", "flat", "low-poly"]):
        assert triplet.meta["subject"] in ("star", "heart", "fish") and triplet.meta["style"].name in ("neon", "flat")
    for triplet in take(20, size=8, families=["light", "facet"]):
        assert triplet.meta["family"] == "light"
    for triplet in take(20, size=8, families=["light", "facet"], split="heldout_families"):
        assert triplet.meta["family"] == "facet"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "edit"}, "task is 'edit'"),
        ({"layout": "kept"}, "layout is 'kept'"),
        ({"prompt": ""}, "needs a prompt"),
        ({"content": None}, "content present and style present, but content is absent"),
        ({"target": IMAGE.astype(np.float32)}, "target image is float32"),
        ({"styles": (IMAGE[..., :2],)}, "style image is uint8"),
    ],
)
def test_record_refuses(change, message):
    good = {"prompt": "a star", "content": IMAGE, "styles": (IMAGE,), "target": IMAGE, "task": "style_subject"}
    with pytest.raises(InputError, match=message):
        Triplet(**(good | {"layout": "shifted", "key": "k"} | change))
