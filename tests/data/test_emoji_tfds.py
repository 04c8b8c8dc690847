# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The fixed emoji data set: TFDS stores the triplets of EmojiSource and reads them back."""

import shutil
import sys
import types

import numpy as np
import pytest
from emoji_files import write_tarballs

from uso_jax.common.errors import InputError
from uso_jax.data.emoji.artwork import HELDOUT_TEAM, is_heldout
from uso_jax.data.emoji.source import EmojiSource
from uso_jax.data.emoji.tfds import SPLITS, EmojiConfig, EmojiSet, EmojiTriplets, prepare

CONFIG = {"size": 16, "num_train": 24, "num_heldout": 6}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder, data = write_tarballs(tmp_path_factory.mktemp("tarballs")), tmp_path_factory.mktemp("data")
    path = prepare(folder, data, EmojiConfig(**CONFIG))
    assert path.is_dir() and list(path.glob("*.array_record*"))
    return folder, data


def test_round_trip(prepared):
    for split in SPLITS:
        kept = EmojiSet(prepared[1], split)
        drawn = EmojiSource(data_dir=prepared[1], split=split, size=16, looks={"artists": 1})
        assert len(kept) == (24 if split == "train" else 6)
        for index in range(len(kept)):
            a, b = kept[index], drawn[index]
            assert (a.prompt, a.layout, a.task) == (b.prompt, b.layout, b.task)
            assert np.array_equal(a.content, b.content) and np.array_equal(a.target, b.target)
            assert np.array_equal(a.styles[0], b.styles[0])
            names = {"subject": a.meta["subject"], "team": a.meta["style_team"], "content_team": a.meta["content_team"]}
            assert names == {name: b.meta[name] for name in names}
            assert is_heldout(a.meta["subject"]) == (split in ("heldout_subjects", "heldout"))
            assert (a.meta["style_team"] == HELDOUT_TEAM) == (split in ("heldout_style", "heldout"))
    assert "tensorflow" not in sys.modules or not isinstance(sys.modules["tensorflow"], types.ModuleType)


def test_prepare_again_is_free_and_other_configurations_lie_beside(prepared, tmp_path):
    tarballs, data = prepared
    assert prepare(tmp_path, data, EmojiConfig(**CONFIG)).name == "2.0.0"  # not read: the folder has no tarballs
    prepare(tarballs, data, EmojiConfig(size=12, num_train=3, num_heldout=1))  # from the same artwork
    assert len(list((data / "emoji_artwork").glob("*.npy"))) == 1
    with pytest.raises(
        InputError,
        match="set config to one of 12px_num_train3_num_heldout1, 16px_num_train24_num_heldout6",
    ):
        EmojiSet(data)
    assert EmojiSet(data, config="12px_num_train3_num_heldout1")[0].target.shape == (12, 12, 3)
    shutil.rmtree(data / "emoji_triplets" / "12px_num_train3_num_heldout1")


def test_wrong_source_options(prepared, tmp_path):
    with pytest.raises(InputError, match="unknown split 'test'"):
        EmojiSet(prepared[1], "test")
    with pytest.raises(InputError, match=r"no emoji data set in .* \(found: none\)"):
        EmojiSet(tmp_path)
    with pytest.raises(InputError, match=r"named '64px' .*found: 16px_num_train24"):
        EmojiSet(prepared[1], config="64px")
    old = tmp_path / "emoji_triplets" / "64px" / "1.0.0"
    old.mkdir(parents=True)
    (old / "dataset_info.json").touch()
    with pytest.raises(InputError, match="of another version: prepare it again"):
        EmojiSet(tmp_path)


def test_default_builder(tmp_path):
    builder = EmojiTriplets(data_dir=tmp_path, config=EmojiConfig())
    assert builder.info.full_name == "emoji_triplets/64px/2.0.0"
    assert EmojiConfig(seed=3, preserved=0.25).name == "64px_seed3_preserved0.25"
    with pytest.raises(InputError, match="size 4 must be at least 8"):
        EmojiConfig(size=4)


def test_missing_tarballs_are_named_with_the_command(tmp_path):
    with pytest.raises(InputError, match=r"icon sets missing in .* npm pack @iconify-json/twemoji"):
        prepare(tmp_path, tmp_path / "data", EmojiConfig(**CONFIG))
