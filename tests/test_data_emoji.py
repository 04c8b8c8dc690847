# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The emoji builder on tarballs made here: a few drawn bodies in seven sets, each with a colour of its own."""

import io
import json
import shutil
import sys
import tarfile
import types

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("resvg_py")

from uso_jax.data.emoji import (
    HELDOUT_TEAM,
    SPLITS,
    TEAMS,
    EmojiConfig,
    EmojiGrid,
    EmojiSource,
    EmojiTriplets,
    is_heldout,
    prepare,
)
from uso_jax.data.iconify import MEMBER, IconSet, common_subjects, find_tarballs, read_icon_set
from uso_jax.data.pipeline import batches, open_source
from uso_jax.errors import InputError

SHAPES = {
    "disc": '<circle cx="16" cy="16" r="14" fill="{0}"/>',
    "block": '<path fill="{0}" d="M4 4h24v24H4z"/>',
    "roof": '<path fill="{0}" d="M16 2l14 28H2z"/>',
    "bar-of-gold": '<path fill="{0}" d="M2 12h28v8H2z"/>',
    "post": '<path fill="{0}" d="M12 2h8v28h-8z"/>',
    "left-arrow": '<path fill="{0}" d="M2 16l14-14v28z"/>',
}
COLOURS = ("#c02020", "#20a030", "#2040c0", "#c0a020", "#a020a0", "#20a0a0", "#404040")
HELD = next(name for name in (f"gem-{n}" for n in range(100)) if is_heldout(name))
CONFIG = {"size": 16, "num_train": 24, "num_heldout": 6}


def icons(team):
    colour = COLOURS[TEAMS.index(team)]
    drawn = {name: {"body": body.format(colour)} for name, body in SHAPES.items()}
    drawn[HELD] = {"body": SHAPES["roof"].format(colour), "width": 48, "left": -8}
    return {"prefix": team, "width": 32, "height": 32, "icons": drawn, "aliases": {"ball": {"parent": "disc"}}}


def write_tarball(folder, team, data=None, member=MEMBER):
    payload = json.dumps(icons(team) if data is None else data).encode()
    with tarfile.open(folder / f"iconify-json-{team}-1.2.3.tgz", "w:gz") as archive:
        for name, content in (("package/README.md", b"x" * 2000), (member, payload)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return folder / f"iconify-json-{team}-1.2.3.tgz"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder, data = tmp_path_factory.mktemp("tarballs"), tmp_path_factory.mktemp("data")
    for team in TEAMS:
        write_tarball(folder, team)
    path = prepare(folder, data, EmojiConfig(**CONFIG))
    assert path.is_dir() and list(path.glob("*.array_record*"))
    return folder, data


def test_round_trip(prepared):
    tarballs, data = prepared
    grid = EmojiGrid([read_icon_set(path, team) for team, path in find_tarballs(tarballs, TEAMS).items()], 16)
    for split in SPLITS:
        source = EmojiSource(data, split)
        assert len(source) == (24 if split == "train" else 6)
        for index in range(len(source)):
            triplet, drawn = source[index], grid.draw(EmojiConfig(**CONFIG), split, index)
            assert triplet.prompt == drawn["prompt"] and triplet.meta["subject"] == drawn["subject"]
            assert triplet.target.shape == (16, 16, 3) and triplet.content.dtype == np.uint8
            assert np.array_equal(triplet.target, decoded(drawn["target"]))
            assert np.array_equal(triplet.styles[0], decoded(drawn["style"]))
    assert "tensorflow" not in sys.modules or not isinstance(sys.modules["tensorflow"], types.ModuleType)


def decoded(buffer):
    return np.asarray(Image.open(io.BytesIO(buffer.getvalue())))


def test_splits_hold_out_what_they_say(prepared):
    for split in SPLITS:
        source = EmojiSource(prepared[1], split)
        for triplet in (source[index] for index in range(len(source))):
            meta = triplet.meta
            assert is_heldout(meta["subject"]) == (split == "heldout_subjects")
            assert (meta["style_team"] == HELDOUT_TEAM) == (split == "heldout_style")
            assert meta["content_team"] not in (HELDOUT_TEAM, meta["style_team"])
            assert meta["style_subject"] not in (meta["subject"], "left-arrow") and not is_heldout(
                meta["style_subject"]
            )
            words = meta["subject"].replace("-", " ")
            assert words in triplet.prompt if triplet.layout == "shifted" else triplet.prompt in ("", f"the {words}")


def test_prepare_again_is_free_and_other_configurations_lie_beside(prepared, tmp_path):
    tarballs, data = prepared
    assert prepare(tmp_path, data, EmojiConfig(**CONFIG)).name == "1.0.0"  # not read: the folder has no tarballs
    prepare(tarballs, data, EmojiConfig(size=8, num_train=3, num_heldout=1))
    with pytest.raises(
        InputError,
        match="set config to one of 16px_num_train24_num_heldout6, 8px_num_train3_num_heldout1",
    ):
        EmojiSource(data)
    source = open_source({"name": "emoji", "data_dir": data, "config": "8px_num_train3_num_heldout1"})
    stream = batches(
        source, batch_size=2, seed=0, target_size=(8, 8), content_size=(8, 8), style_size=(8, 8), num_styles=1,
        tokenize=lambda prompt: {"length": np.asarray(len(prompt))},
    )  # fmt: skip
    assert next(iter(stream))["target"].shape == (2, 8, 8, 3)
    shutil.rmtree(data / "emoji_triplets" / "8px_num_train3_num_heldout1")


def test_wrong_source_options(prepared, tmp_path):
    with pytest.raises(InputError, match="unknown split 'test'"):
        EmojiSource(prepared[1], "test")
    with pytest.raises(InputError, match=r"no emoji data set in .* \(found: none\)"):
        EmojiSource(tmp_path)
    with pytest.raises(InputError, match=r"named '64px' .*found: 16px_num_train24"):
        EmojiSource(prepared[1], config="64px")


def test_default_builder(tmp_path):
    builder = EmojiTriplets(data_dir=tmp_path, config=EmojiConfig())
    assert builder.info.full_name == "emoji_triplets/64px/1.0.0"
    assert EmojiConfig(seed=3, preserved=0.25).name == "64px_seed3_preserved0.25"
    with pytest.raises(InputError, match="size 4 must be at least 8"):
        EmojiConfig(size=4)


def test_missing_tarballs_are_named_with_the_command(tmp_path):
    for team in TEAMS:
        if team not in ("noto", "emojione"):
            write_tarball(tmp_path, team)
    with pytest.raises(InputError, match=r"noto, emojione\. .* npm pack @iconify-json/noto @iconify-json/emojione$"):
        prepare(tmp_path, tmp_path / "data", EmojiConfig(**CONFIG))
    (tmp_path / "iconify-json-noto-v1-1.2.4.tgz").touch()
    with pytest.raises(InputError, match="2 versions of 'noto-v1'"):
        find_tarballs(tmp_path, TEAMS)


def test_wrong_tarballs(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"has no package/icons\.json"):
        read_icon_set(write_tarball(tmp_path, "noto", member="../package/icons.json"), "noto")
    with pytest.raises(InputError, match="is not the icon set 'noto'"):
        read_icon_set(write_tarball(tmp_path, "noto", {"prefix": "other", "icons": {}}), "noto")
    with pytest.raises(InputError, match="has no body"):
        read_icon_set(write_tarball(tmp_path, "noto", {"prefix": "noto", "icons": {"a": {}}}), "noto")
    path = write_tarball(tmp_path, "noto")
    monkeypatch.setattr("uso_jax.data.iconify.MAX_BYTES", 100)
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
    for name, message in (("bad", "outside itself"), ("broken", "cannot be drawn"), ("none", "there is no icon")):
        with pytest.raises(InputError, match=message):
            team.render(name, 16)
