# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The drawn triplets: reproducible, exact counterfactuals, honest splits, prompts by convention."""

import dataclasses

import numpy as np
import pytest

from uso_jax.data import palette
from uso_jax.data.canvas import Pose
from uso_jax.data.procedural import PLAIN, SPLITS, STYLE_FAMILIES, SUBJECTS, ProceduralSource, Style, render
from uso_jax.data.record import Triplet
from uso_jax.data.styles import combinations
from uso_jax.data.subjects import subject_names
from uso_jax.errors import InputError

IMAGE = np.zeros((4, 4, 3), np.uint8)


def take(count, **options):
    source = ProceduralSource(**options)
    return [source[index] for index in range(count)]


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


def test_subjects_can_be_told_apart_in_every_style():
    rng = np.random.default_rng(0)
    for family in STYLE_FAMILIES:
        style = dataclasses.replace(
            Style.draw(rng, (family,), heldout=False), fill=(0.9, 0.8, 0.1), ground=(0.1, 0.1, 0.4)
        )
        pictures = np.stack([render(subject, Pose(), style, 32) for subject in SUBJECTS.values()]).astype(float)
        apart = np.abs(pictures[:, None] - pictures[None]).mean((2, 3, 4)) + 1e3 * np.eye(len(pictures))
        assert apart.min() > 2.0, (family, apart.min())


def test_families_can_be_told_apart():
    style = Style(
        "flat",
        (0.9, 0.8, 0.1),
        (0.1, 0.1, 0.4),
        palette.ink_for((0.9, 0.8, 0.1), (0.1, 0.1, 0.4)),
        "yellow",
        "blue",
        0.42,
        0.7,
    )
    pictures = [
        render(SUBJECTS["house"], Pose(), dataclasses.replace(style, family=family), 32).astype(float)
        for family in (*STYLE_FAMILIES, PLAIN)
    ]
    for index, picture in enumerate(pictures):
        assert min(np.abs(picture - other).mean() for other in pictures[:index] + pictures[index + 1 :]) > 4.0


def test_subjects_fit_their_field_and_fill_some_of_it():
    for name, subject in SUBJECTS.items():
        picture = render(subject, Pose(1.0), Style("flat", (1.0,) * 3, (0.0,) * 3, (1.0,) * 3, "white", "black"), 64)
        covered = (picture[..., 0] > 127).mean()
        edge = max(picture[0].max(), picture[-1].max(), picture[:, 0].max(), picture[:, -1].max())
        assert 0.08 < covered < 0.8 and edge < 255, (name, covered, edge)


def test_splits_hold_out_what_they_say():
    seen, heldout = set(subject_names(heldout=False)), set(subject_names(heldout=True))
    assert len(seen) >= 24 and len(heldout) >= 4
    held_styles = {(family, *pair) for family in STYLE_FAMILIES for pair in combinations(family, True)}
    for split in SPLITS:
        for triplet in take(60, split=split, size=8):
            style = triplet.meta["style"]
            assert triplet.meta["subject"] in (heldout if split in ("heldout", "heldout_subjects") else seen)
            assert set(triplet.meta["style_subjects"]) <= seen
            combination = (style.family, style.fill_name, style.ground_name)
            assert (combination in held_styles) == (split in ("heldout", "heldout_styles"))


def test_each_family_and_pair_is_seen_in_training():
    for family in STYLE_FAMILIES:
        train, held = set(combinations(family, False)), set(combinations(family, True))
        assert not train & held and train | held == set(palette.pairs()) and len(held) > 8
    assert set().union(*(combinations(family, False) for family in STYLE_FAMILIES)) == set(palette.pairs())


def test_prompts_by_layout_and_style_words():
    triplets = take(80, size=8, empty_prompt=1.0)
    assert all((t.prompt == "") == (t.layout == "preserved") for t in triplets)
    for triplet in triplets:
        if triplet.prompt:
            assert SUBJECTS[triplet.meta["subject"]].phrase in triplet.prompt
            assert triplet.meta["style"].fill_name + " on" not in triplet.prompt
    for triplet in take(20, size=8, tasks={"text": 1}, style_words=1.0):
        assert triplet.prompt == f"{SUBJECTS[triplet.meta['subject']].phrase}, {triplet.meta['style'].words}"


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
        ({"families": ["cubism"]}, "unknown style family 'cubism'"),
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
    for triplet in take(20, size=8, subjects=["heart", "star", "fish"], families=["neon", "flat"]):
        assert triplet.meta["subject"] in ("star", "heart", "fish") and triplet.meta["family"] in ("neon", "flat")


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
