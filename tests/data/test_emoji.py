# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Emoji triplets from synthetic tarballs: a few shapes in seven sets, each in another colour."""

import os

import numpy as np
import pytest
from emoji_files import HELD, icons, write_tarball, write_tarballs

from uso_jax.common.errors import InputError
from uso_jax.data.drawings.look import FAMILIES, HELDOUT_FAMILIES, PLAIN
from uso_jax.data.drawings.styles import STYLES, render
from uso_jax.data.emoji import artwork as emoji_artwork
from uso_jax.data.emoji.artwork import FOLDER, HELDOUT_TEAM, TEAMS, EmojiArtwork, is_heldout
from uso_jax.data.emoji.iconify import IconSet, common_subjects, find_tarballs, read_icon_set
from uso_jax.data.emoji.source import LOOKS, TRAINED_TEAMS, EmojiSource
from uso_jax.data.loader import batches
from uso_jax.data.sources import open_source
from uso_jax.data.splits import SPLITS
from uso_jax.evaluation.metrics.counterfactual import Counterfactuals, TruthfulSource

pytest.importorskip("resvg_py")
pytest.importorskip("defusedxml")


@pytest.fixture(scope="module")
def tarballs(tmp_path_factory):
    return write_tarballs(tmp_path_factory.mktemp("tarballs"))


@pytest.fixture(scope="module")
def data(tmp_path_factory, tarballs):
    """Return a folder that contains only the artwork for 32 pixels."""
    folder = tmp_path_factory.mktemp("data")
    EmojiArtwork(folder, tarballs, size=32)
    return folder


def open_emoji(data, **changes):
    return EmojiSource(**dict(data_dir=data, size=32, length=60) | changes)


def same(a, b):
    images = [[t.content, *t.styles, t.target] for t in (a, b)]
    return (a.prompt, a.key, a.meta) == (b.prompt, b.key, b.meta) and all(map(np.array_equal, *images))


def test_an_example_depends_on_seed_split_and_index_alone(data):
    source = open_emoji(data)
    first = [source[index] for index in range(6)]
    assert all(same(open_emoji(data, length=9)[index], first[index]) for index in reversed(range(6)))
    assert not any(same(open_emoji(data, seed=1)[index], first[index]) for index in range(6))
    assert len(source) == 60 and source[np.int64(59)].target.shape == (32, 32, 3)
    for index in (-1, 60):
        with pytest.raises(IndexError):
            source[index]


@pytest.mark.parametrize("split", SPLITS)
def test_splits_hold_out_what_they_say(data, split):
    source = open_emoji(data, split=split, num_styles=2)
    seen = set()
    for triplet in map(source.__getitem__, range(60)):
        meta, style = triplet.meta, triplet.meta["style"]
        seen.add(meta["look"])
        assert is_heldout(meta["subject"]) == (split in ("heldout_subjects", "heldout"))
        assert not any(map(is_heldout, meta["style_subjects"])) and meta["subject"] not in meta["style_subjects"]
        assert meta["content_team"] in TRAINED_TEAMS
        held_style = split in ("heldout_styles", "heldout")
        if meta["look"] == "artists":
            assert style.name == PLAIN and meta["team"] != meta["content_team"]
            assert (meta["team"] == HELDOUT_TEAM) == held_style
            assert set(meta["style_teams"]) == {meta["team"]} and set(meta["labels"].values()) == {-1}
        else:
            assert meta["team"] == meta["content_team"] and HELDOUT_TEAM not in meta["style_teams"]
            assert style.is_heldout == (held_style or split == "heldout_families")
            assert (style.family in HELDOUT_FAMILIES) == (split == "heldout_families")
            assert meta["labels"]["subject"] == -1 and list(STYLES)[meta["labels"]["style"]] == style.name
            assert list(FAMILIES)[meta["labels"]["family"]] == meta["family"]
        words = meta["subject"].replace("-", " ")
        assert words in triplet.prompt if triplet.layout == "shifted" else triplet.prompt in ("", f"the {words}")
    assert seen == ({"drawn"} if split == "heldout_families" else set(LOOKS))


@pytest.mark.parametrize("look", LOOKS)
def test_the_target_is_its_own_first_counterfactual(data, look):
    source = open_emoji(data, looks={look: 1}, preserved=1.0)
    assert isinstance(source, TruthfulSource)
    for triplet in (source[index] for index in range(4)):
        contents, styles = source.counterfactuals(triplet)
        assert len(contents) == len(source.artwork.names)  # of which there are fewer than 60
        assert len(styles) == (7 if look == "artists" else 24)
        for candidates in (contents, styles):
            assert np.array_equal(candidates[0], triplet.target)
            errors = np.abs(candidates[1:].astype(int) - triplet.target).mean((1, 2, 3))
            assert (errors > 0.5).all()
        assert all(map(np.array_equal, source.counterfactuals(triplet), (contents, styles)))
        drawn = source.style_drawings(triplet, 3, np.random.default_rng(0))
        assert len(drawn) == len(styles) and {images.shape for images in drawn} == {(3, *triplet.target.shape)}
    triplets = [source[index] for index in range(8)]
    judge = Counterfactuals(source, triplets)
    found = judge.per_image(np.stack([t.target for t in triplets]))
    assert found["content_accuracy"].all() and found["style_accuracy"].all() and not found["mse"].any()
    assert "content_flat_accuracy" not in found  # artwork has no flat style
    assert judge.per_image(np.stack([t.content for t in triplets]))["style_accuracy"].mean() < 0.5


def test_the_old_name_of_a_split_gives_the_same_triplets(data):
    old, new = (open_emoji(data, split=split)[3] for split in ("heldout_style", "heldout_styles"))
    assert same(old, new) and new.key == "emoji/heldout_style/0/3"  # which counterfactuals are drawn by


@pytest.mark.parametrize("look", LOOKS)
def test_images_are_what_meta_says(data, look):
    source = open_emoji(data, looks={look: 1}, size=24)
    for triplet in (source[index] for index in range(8)):
        meta = triplet.meta
        content = source.artwork.subject(meta["subject"], meta["content_team"])
        assert np.array_equal(triplet.content, render(content, meta["content_pose"], meta["content_style"], 24))
        target = source.artwork.subject(meta["subject"], meta["team"])
        assert np.array_equal(triplet.target, render(target, meta["pose"], meta["style"], 24))
        assert (meta["pose"] == meta["content_pose"]) == (triplet.layout == "preserved")


def test_artwork_has_the_colours_and_the_shape_of_the_icon(data):
    artwork = EmojiArtwork(data, "", size=32)
    block = artwork.subject("block", "noto")  # a square: its corners lie on the unit circle
    assert np.abs(block.artwork[16, 16] * 255 - (0x20, 0xA0, 0x30, 255)).max() < 1.5
    assert not block.artwork[0].any() and (block.name, block.phrase) == ("block", "the block")
    axis = np.linspace(-1.3, 1.3, 161)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    body = block.field[:, 0].reshape(161, 161)
    inside = np.maximum(np.abs(x), np.abs(y)) - np.sqrt(0.5)
    assert np.abs(body - inside)[(np.abs(y) < 0.6) & (np.abs(x) < 1)].max() < 0.05
    assert artwork.subject("disc", "twemoji").fill == "red"


def test_tasks_and_their_words(data):
    source = open_emoji(data, tasks={"subject": 1, "text": 1, "style": 1}, length=80)
    triplets = [source[index] for index in range(80)]
    assert {t.task for t in triplets} == {"subject", "text", "style"}
    for t in triplets:
        meta = t.meta
        changed = t.task == "subject" and (meta["style"].name != PLAIN or meta["team"] != meta["content_team"])
        words = f"{meta['team']} style on" if meta["look"] == "artists" else f"{meta['style'].name} style"
        assert (words in t.prompt) == changed and (t.content is None) == (t.task != "subject")
    assert {t.meta["team"] == t.meta["content_team"] for t in triplets if t.task == "subject"} == {True, False}
    always = open_emoji(data, style_words=1.0, empty_prompt=0.0, looks={"artists": 1, "drawn": 0})[0]
    assert f", {always.meta['team']} style on {always.meta['style'].ground_name}" in always.prompt


def test_copies(data):
    source = open_emoji(data, tasks={"subject": 1}, same_look=1.0, preserved=1.0)
    for triplet in (source[index] for index in range(6)):
        assert np.array_equal(triplet.content, triplet.target) and triplet.prompt == triplet.meta["phrase"]


def test_artwork_is_made_once(data, tarballs, tmp_path, monkeypatch):
    made = sorted(data.rglob("*"))
    assert [path.name for path in made[:2]] == [FOLDER, ".gitignore"] and len(made) == 3  # no temporary file stays
    monkeypatch.setattr(emoji_artwork, "read_icon_set", None)
    assert same(open_emoji(data, manual_dir=tarballs)[3], open_emoji(data)[3])
    assert sorted(data.rglob("*")) == made
    monkeypatch.undo()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(emoji_artwork, "subject_from_artwork", interrupted)
    with pytest.raises(KeyboardInterrupt):
        EmojiArtwork(tmp_path, tarballs, size=8)
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == [".gitignore"]
    monkeypatch.undo()
    # Other tarballs are other artwork, which lies beside.
    os.link(made[2], tmp_path / FOLDER / made[2].name)
    changed = tmp_path / "tarballs"
    changed.mkdir()
    for team in TEAMS:
        drawn = icons(team)["icons"]
        write_tarball(changed, team, icons(team) | {"icons": {name: drawn[name] for name in ("roof", "block", HELD)}})
    assert len(EmojiArtwork(tmp_path, changed, size=32).names) == 3
    with pytest.raises(InputError, match="holds 2 files of emoji artwork for 32 pixels"):
        EmojiArtwork(tmp_path, "", size=32)


def test_a_file_that_is_not_what_it_should_be(tmp_path):
    path = tmp_path / FOLDER / "v1-32px-0.npy"
    path.parent.mkdir()
    path.write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match=r"is not readable .* delete it"):
        open_emoji(tmp_path)
    np.save(path, np.zeros(3))
    with pytest.raises(InputError, match="does not hold emoji artwork of this version"):
        open_emoji(tmp_path)


def test_wrong_options(data, tmp_path):
    for changes, message in (
        ({"split": "heldout_looks"}, "unknown split 'heldout_looks'; use one of train, heldout_subjects, "),
        ({"size": 4}, "size is 4"),
        ({"plain": 1.5}, "plain is 1.5; it must be from 0 to 1"),
        ({"looks": {"drawings": 1}}, "looks {'drawings': 1} must assign weights .* artists, drawn"),
        ({"tasks": {"style": 0}}, "a positive one to at least one"),
        ({"split": "heldout_families", "looks": {"artists": 1}}, "heldout_families has only drawn styles"),
        ({"data_dir": tmp_path}, "holds 0 files of emoji artwork for 32 pixels .* set manual_dir .*npm pack @iconify"),
    ):
        with pytest.raises(InputError, match=message):
            open_emoji(data, **changes)


def test_missing_tarballs_are_named_with_the_command(tmp_path):
    for team in TEAMS:
        if team not in ("noto", "emojione"):
            write_tarball(tmp_path, team)
    with pytest.raises(InputError, match=r"noto, emojione\. .* npm pack @iconify-json/noto @iconify-json/emojione$"):
        open_emoji(tmp_path, manual_dir=tmp_path)
    (tmp_path / "iconify-json-noto-v1-1.2.4.tgz").touch()
    with pytest.raises(InputError, match="2 versions of 'noto-v1'"):
        find_tarballs(tmp_path, TEAMS)
    for team in ("noto", "emojione"):
        write_tarball(tmp_path, team, icons(team) | {"icons": {"block": icons(team)["icons"]["block"]}})
    (tmp_path / "iconify-json-noto-v1-1.2.4.tgz").unlink()
    with pytest.raises(InputError, match="share 1 seen and 0 held-out subjects"):
        open_emoji(tmp_path, manual_dir=tmp_path)


def test_batches_by_name(data):
    source = open_source({"name": "emoji", "data_dir": data}, {"tasks": {"style": 1}, "place_words": 1.0})
    stream = batches(
        source, batch_size=2, seed=0, target_size=(32, 32), content_size=(8, 8), style_size=(8, 8), num_styles=1,
        tokenize=lambda prompt: {"length": np.asarray(len(prompt))},
    )  # fmt: skip
    batch = next(iter(stream))
    assert batch["target"].shape == (2, 32, 32, 3) and not batch["content_valid"].any()


def test_one_name_for_each_drawing():
    """Otherwise a held-out subject could be a seen one under another name."""
    data = icons("noto")
    first = IconSet("noto", 32, 32, data["icons"], {"ball": {"parent": "disc"}, "cube": {"parent": "block"}})
    other = IconSet("other", 32, 32, {n: data["icons"]["post"] for n in ("ball", "disc", "cube")}, {})
    assert common_subjects([first, other]) == ("cube", "disc")


def test_wrong_tarballs(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"has no package/icons\.json"):
        read_icon_set(write_tarball(tmp_path, "noto", member="../package/icons.json"), "noto")
    with pytest.raises(InputError, match="is not the icon set 'noto'"):
        read_icon_set(write_tarball(tmp_path, "noto", {"prefix": "other", "icons": {}}), "noto")
    with pytest.raises(InputError, match="has no body"):
        read_icon_set(write_tarball(tmp_path, "noto", {"prefix": "noto", "icons": {"a": {}}}), "noto")
    path = write_tarball(tmp_path, "noto")
    monkeypatch.setattr("uso_jax.data.emoji.iconify.MAX_BYTES", 100)
    with pytest.raises(InputError, match="more than 100"):
        read_icon_set(path, "noto")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="not a readable icon tarball"):
        read_icon_set(path, "noto")


def test_icons_size_alias_and_refusals():
    data = icons("noto")
    data["icons"]["bad"] = {"body": '<image href="/etc/hosts"/>'}
    data["icons"]["broken"] = {"body": "<path"}
    data["aliases"] |= {"turned": {"parent": "disc", "rotate": 1}, "loop": {"parent": "loop"}}
    team = IconSet("noto", 32, 32, data["icons"], data["aliases"])
    ball = team.render("ball", 32)
    assert np.array_equal(ball, team.render("disc", 32)) and ball.shape == (32, 32, 4)
    assert ball[0, 0, 3] == 0 and ball[16, 16].tolist() == [0x20, 0xA0, 0x30, 255]
    wide = team.render(HELD, 48)  # 48 x 32 units in a square: transparent above and below
    assert not wide[:8, :, 3].any() and wide[24, 24, 3] == 255
    assert {"ball", "disc"} <= team.names() and not {"turned", "loop"} & team.names()
    assert "left-arrow" not in common_subjects([team])
    for name, message in (
        ("bad", "external content"),
        ("broken", "cannot be rendered"),
        ("none", "icon .none. .* does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            team.render(name, 16)
