# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Stages with a policy: rounds of roll-outs, what is kept of them, and kills at every point of a round."""

import json
import tarfile

import jax
import numpy as np
import pytest
import tiny
from comparison import assert_same
from training_runs import metrics

import uso_jax.training.fit
from uso_jax.common.errors import InputError
from uso_jax.data.rollout_store import RolloutStore
from uso_jax.training import black_boxes, rewards
from uso_jax.training.checkpoints import Checkpoints
from uso_jax.training.fit import fit
from uso_jax.training.policy import PolicyConfig
from uso_jax.training.rollouts import Rollouts

# Rounds of 8 images and two steps; a checkpoint every three, so that one lies inside a round.
POLICY = dict(
    prompts=4,
    group=2,
    epochs=2,
    num_steps=2,
    levels=2,
    common_noise=True,
    weights={"bright": 1.0},
    black_boxes={"red": 1.0},
    anchor=0.1,
)
STEPS, EVERY = 6, 3


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@pytest.fixture(scope="module", autouse=True)
def scores():
    """Register a reward and a black box, which counts the images it is asked about."""
    asked = []

    def red(images, wanted):
        asked.append(len(images))
        assert all(
            one.triplet.key == one.source[number].key for one, number in zip(wanted, _indices(wanted), strict=True)
        )
        return [float(image[..., 0].mean()) - image[..., 2].mean() for image in images]

    with pytest.MonkeyPatch.context() as patch:
        bright = rewards.Reward(score=lambda system, params, images, described: images.mean((1, 2, 3)))
        patch.setitem(rewards.REWARDS, "bright", bright)
        patch.setitem(black_boxes.BLACK_BOXES, "red", red)
        yield asked


def _indices(wanted):
    return [int(one.triplet.key.rpartition("/")[2]) for one in wanted]


def config(**changes):
    stage = dict(steps=STEPS, reward=None, policy=PolicyConfig(**POLICY | changes), learning_rate=1e-3)
    return tiny.config("joint", changes={"checkpoint.every": EVERY}, **stage)


def run(workdir, **changes):
    """Train, and return what each checkpoint got, by step."""
    saved = {}

    class Watched(Checkpoints):
        def save(self, step, arrays, record):
            saved[step] = jax.device_get(arrays)
            super().save(step, arrays, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uso_jax.training.fit, "Checkpoints", Watched)
        fit(config(**changes), workdir)
    return saved


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    return workdir, run(workdir)


def rows(workdir, number):
    return [json.loads(line) for line in (workdir / f"rollouts/joint/{number:05d}.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_rounds_are_kept_with_images_and_scores(straight, scores):
    workdir, _ = straight
    files = sorted(path.name for path in (workdir / "rollouts/joint").iterdir())
    assert files == [f"{number:05d}.{kind}" for number in range(3) for kind in ("jsonl", "tar")]
    assert scores[:3] == [8, 8, 8]
    for number in range(3):
        found = rows(workdir, number)
        assert [row["number"] for row in found] == list(range(8))
        assert [row["index"] for row in found[::2]] == [row["index"] for row in found[1::2]]  # groups
        assert {name for row in found for name in row["scores"]} == {"bright", "red"}
        worth = np.array([row["advantage"] for row in found]).reshape(4, 2)
        np.testing.assert_allclose(worth.sum(axis=1), 0, atol=1e-6)
        with tarfile.open(workdir / f"rollouts/joint/{number:05d}.tar") as archive:
            names = archive.getnames()
        assert names[:8] == [f"{i}.png" for i in range(8)]
        known = [f"{i}.{kind}.png" for i in range(0, 8, 2) for kind in ("content", "style_0")]
        assert set(names[8:]) <= set(known) and len(names) > 8
        assert {row["request"] for row in found} == {0, 2, 4, 6} and all("prompt" in row for row in found[::2])


@pytest.mark.slow
def test_figures_of_rounds_and_steps(straight):
    workdir, _ = straight
    told = metrics(workdir)
    assert [line["step"] for line in told if "scored" in line] == [1, 3, 5]
    assert all({"reward", "reward_bright", "reward_red"} <= set(line) for line in told if "scored" in line)
    steps = {line["step"]: line for line in told if "loss_policy" in line}
    assert sorted(steps) == list(range(1, STEPS + 1))
    assert steps[1]["old_distance"] == steps[1]["anchor_distance"] == 0 < steps[2]["old_distance"]
    assert all(line["loss_policy"] > 0 for line in steps.values())
    first = next(line for line in told if "heldout_bright" in line)
    assert "heldout_red" not in first  # held-out images are judged by networks only


@pytest.mark.slow
def test_the_old_policy_moves_after_a_round(straight):
    """With a share of 0 at first, the old policy is the trained one after every second step."""
    _, saved = straight
    inside, end = saved[3], saved[6]
    name = next(path for path in end["old"] if "/up/" in path)
    assert not np.array_equal(inside["old"][name], inside["params"][name])
    share = POLICY.get("old_rate", PolicyConfig().old_rate) * 3
    assert not np.array_equal(end["old"][name], inside["old"][name])
    assert np.abs(end["old"][name] - end["params"][name]).max() <= share * np.abs(end["params"][name]).max()
    assert_same(inside["anchor"], end["anchor"])


KILLS = (("_generate", 2), ("_scores", 1), ("batch", 6))  # what raises, and at which call: one point of each kind


@pytest.mark.slow
def test_killed_and_continued_equals_straight(straight, scores, tmp_path):
    """Kills while the second round is generated, then scored, and in training on the third."""
    for name, at in KILLS:
        original, calls = getattr(Rollouts, name), []

        def killed(*args, original=original, calls=calls, at=at):
            calls.append(at)
            if len(calls) == at:
                raise KeyboardInterrupt
            return original(*args)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Rollouts, name, killed)
            run(tmp_path)
    before = len(scores)
    saved = run(tmp_path)
    workdir, expected = straight
    assert_same(saved[6], expected[6])
    for number in range(3):
        assert rows(tmp_path, number) == rows(workdir, number)
    assert len(scores) == before  # all rounds were on disk by then


@pytest.mark.slow
def test_training_raises_what_is_scored(tmp_path, monkeypatch):
    """A black box without gradient is followed: held-out images, from the same noise before and after, get redder."""
    redness = rewards.Reward(score=lambda system, params, images, _: (images[..., 0] - images[..., 2]).mean((1, 2)))
    monkeypatch.setitem(rewards.REWARDS, "redness", redness)
    policy = dict(prompts=8, group=4, epochs=1, weights={}, judges=("redness",), anchor=0.0, clip=1.0)
    policy = PolicyConfig(**POLICY | policy | {"keep_images": False})
    changes = dict(steps=30, reward=None, policy=policy, learning_rate=1e-2, batch_size=32)
    summary = fit(tiny.config("joint", changes={"checkpoint.every": 0}, **changes), tmp_path)
    before, *_, after = (figures["heldout_redness"] for figures in summary["stages"][0]["reward"])
    assert after > before + 0.005
    assert not list((tmp_path / "rollouts").rglob("*.tar"))


@pytest.mark.slow
def test_grpo_begins_with_the_density_of_its_roll_outs(tmp_path):
    """The first step of a round knows the policy that made its images, so all ratios are 1; then they leave it."""
    own = dict(method="grpo", num_steps=4, window=(0, 2), levels=1, common_noise=False, anchor=0.0, weights={})
    changes = dict(steps=2, reward=None, policy=PolicyConfig(**POLICY | own), learning_rate=1e-2)
    fit(tiny.config("joint", changes={"checkpoint.every": 0}, **changes), tmp_path)
    first, second = (line["ratio_distance"] for line in metrics(tmp_path) if "ratio_distance" in line)
    assert first < 1e-5 < second


# ---------------------------------------------------------------------------------------------------- disk


def kept(folder, scores=(1.0, np.nan)):
    store = RolloutStore(folder)
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    store.write(0, images, np.array([[0, 7], [0, 7]]), {"a": np.array(scores)}, np.array([0.5, 0.0]), requests=[])
    return store, images


def test_scores_of_the_same_images_are_read(tmp_path):
    store, images = kept(tmp_path)
    np.testing.assert_array_equal(store.read(0, images)["a"], [1.0, np.nan])
    assert store.read(0, images[::-1]) is None and store.read(1, images) is None
    assert [path.name for path in tmp_path.iterdir()] == ["00000.jsonl"]


def test_a_damaged_file_is_named(tmp_path):
    store, images = kept(tmp_path)
    (tmp_path / "00000.jsonl").write_text('{"image": 3}\n')
    with pytest.raises(InputError, match=r"00000\.jsonl line 1.*delete it"):
        store.read(0, images)
