# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The order of pairs, and the groups that they come from."""

import collections

import judged_images
import numpy as np
import pytest

from uso_jax.common.errors import InputError
from uso_jax.data import rollout_store
from uso_jax.preferences.pairs import next_pair


def asked(groups, seed, number=1000):
    """Return the pairs that are asked one after another."""
    judged, found = set(), []
    while len(found) < number and (pair := next_pair(groups, judged, seed)):
        judged.add(frozenset((pair.left, pair.right)))
        found.append(pair)
    return found


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    for number in range(2):
        judged_images.write(workdir, groups=3, number=number)
    return rollout_store.groups(workdir / "rollouts")


def test_groups_have_their_request(groups):
    assert [group.name for group in groups] == [f"joint/0000{i}/{j}" for i in (0, 1) for j in (0, 3, 6)]
    assert [group.prompt for group in groups[:3]] == ["", "a square 1", ""]
    assert [len(group.styles) for group in groups[:3]] == [0, 1, 1]
    for group in groups:
        assert [key.rpartition("/")[0] for key in group.images] == [
            f"{group.name.rpartition('/')[0]}/{int(group.name.rpartition('/')[2]) + i}" for i in range(3)
        ]
        assert group.content.decode().shape == (16, 16, 3)


def test_every_pair_is_asked_once_and_groups_take_turns(groups):
    found = asked(groups, "a")
    assert len({frozenset((pair.left, pair.right)) for pair in found}) == len(found) == 6 * 3
    for turn in range(3):
        assert len({pair.group.name for pair in found[6 * turn : 6 * turn + 6]}) == 6
    assert all({pair.left, pair.right} <= set(pair.group.images) for pair in found)


def test_the_order_follows_from_the_seed(groups):
    assert asked(groups, "a") == asked(groups, "a") != asked(groups, "b")
    sides = collections.Counter(
        list(pair.group.images).index(pair.left) < list(pair.group.images).index(pair.right)
        for seed in "abcdef"
        for pair in asked(groups, seed)
    )
    assert min(sides.values()) > 30  # of 108


def test_equal_images_are_not_asked_about(tmp_path):
    images = np.zeros((3, 4, 4, 3), np.uint8)
    images[2] = 9
    store = rollout_store.RolloutStore(tmp_path / "joint")
    store.write(0, images, np.zeros((3, 2), np.int64), {}, np.zeros(3), [rollout_store.Request()])
    assert [frozenset(key.split("/")[2] for key in (pair.left, pair.right))
            for pair in asked(rollout_store.groups(tmp_path), "")] in (
        [{"0", "2"}, {"1", "2"}], [{"1", "2"}, {"0", "2"}],
    )  # fmt: skip


def test_rounds_without_images_are_no_groups_and_damage_is_named(tmp_path):
    store = rollout_store.RolloutStore(tmp_path / "joint")
    store.write(0, np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 2), np.int64), {}, np.zeros(2), [])
    assert rollout_store.groups(tmp_path) == [] == rollout_store.groups(tmp_path / "nothing")
    judged_images.write(tmp_path / "b")
    lines = (tmp_path / "b/rollouts/joint/00000.jsonl").read_text()
    (tmp_path / "b/rollouts/joint/00000.jsonl").write_text(lines.replace('"number": 3', '"number": 333'))
    with pytest.raises(InputError, match="lacks image 333"):
        rollout_store.groups(tmp_path / "b/rollouts")
    (tmp_path / "b/rollouts/joint/00000.tar").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"00000\.tar"):
        rollout_store.groups(tmp_path / "b/rollouts")
