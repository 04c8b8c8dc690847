# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From roll-outs to a reward: pairs are judged through the page's functions, a scorer is fitted, a policy uses it."""

import dataclasses
import json

import jax.numpy as jnp
import judged_images
import numpy as np
import pytest
import tiny

from uso_jax import mini
from uso_jax.app.preference_page import Comparisons
from uso_jax.commands import prefer
from uso_jax.common.errors import InputError
from uso_jax.data import rollout_store
from uso_jax.models.uso import USO
from uso_jax.preferences import bradley_terry
from uso_jax.preferences.scorer import Scorer
from uso_jax.preferences.verdicts import Verdicts
from uso_jax.training import preference, preference_fit, rewards
from uso_jax.training.fit import fit
from uso_jax.training.policy import PolicyConfig
from uso_jax.training.preflight import check_stages

GROUP = 4
POLICY = dict(prompts=12, group=GROUP, num_steps=1, sample_batch=48)
FRESH = ("transformer", "autoencoder", "siglip", "siglip_text", "clip", "t5", "lora", "projector", "judge")


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


def config(weights):
    """Return a run of tiny with mini's style descriptors, which generates one round and takes one step on it."""
    changes = {"model.weights": "mini", "model.fresh": FRESH, "checkpoint.every": 0, "heldout.every": 0}
    changes["heldout.grid_every"] = 0
    policy = PolicyConfig(**POLICY, weights=weights)
    return tiny.config("joint", changes=changes, steps=1, batch_size=48, reward=None, policy=policy)


def judge(workdir, number):
    """Choose as a person does who likes red."""
    comparisons = Comparisons(workdir)
    state = comparisons.next("a")
    for _ in range(number):
        pair = state.shown
        better = judged_images.redder(*(pair.group.images[key] for key in (pair.left, pair.right)))
        state = comparisons.choose(state, better, "a")
    assert len(Verdicts(workdir).read()) == number


@pytest.mark.slow
def test_choices_become_a_reward_of_a_policy(tmp_path, capsys):
    fit(config({"csd_style": 1.0}), tmp_path / "first")
    judge(tmp_path / "first", 12 * 6)
    file = tmp_path / "scorer.json"
    prefer.main([str(tmp_path / "first"), "--to", str(file), "--rewards", "csd_style"])
    scorer = Scorer.read(file)
    assert f"{scorer.accuracy:.3f}" in capsys.readouterr().out and sum(scorer.pairs) == 72

    # The same seed and weights draw the same images, so their scores in training are those of the fit.
    name = f"preference:{file}"
    fit(config({name: 1.0}), tmp_path / "second")
    rows = (tmp_path / "second/rollouts/joint/00000.jsonl").read_text().splitlines()
    score = {row["image"]: row["scores"][name] for row in map(json.loads, rows)}
    verdicts = Verdicts(tmp_path / "first").read()
    of = lambda key: score[key.rpartition("/")[2]]
    margin = np.array([of(one.left) - of(one.right) for one in verdicts])
    better = np.array([one.better == "left" for one in verdicts], float)
    names = {key: group.name for group in rollout_store.groups(tmp_path / "first/rollouts") for key in group.images}
    held = np.array([bradley_terry._share(names[one.left]) < bradley_terry.HELDOUT for one in verdicts])
    assert held.sum() == scorer.pairs[1]
    assert bradley_terry.accuracy(margin[held], better[held]) == pytest.approx(scorer.accuracy)
    assert bradley_terry.accuracy(margin[~held], better[~held]) > 0.6
    assert np.mean([of(key) for one in verdicts for key in (one.left, one.right)]) == pytest.approx(0, abs=1e-3)


SCORER = dict(rewards={"csd_style": 2}, weights=[0.5] * 5, offset=0.0, networks={}, pairs=(30, 8), accuracy=0.75)


def written(path, **changes):
    Scorer(**SCORER | changes).write(path)
    return f"preference:{path}"


def test_a_scorer_is_found_before_the_run_starts(tmp_path):
    with pytest.raises(InputError, match=r"none\.json does not exist"):
        check_stages(config({f"preference:{tmp_path}/none.json": 1.0}))
    name = written(tmp_path / "unknown.json", rewards={"bright": 2})
    with pytest.raises(InputError, match="built from bright; a scorer may read csd_style"):
        check_stages(config({name: 1.0}))
    check_stages(config({written(tmp_path / "good.json"): 1.0}))
    assert rewards.components([f"preference:{tmp_path}/good.json"]) == {"csd"}


def test_another_network_is_refused(tmp_path):
    name = written(tmp_path / "other.json", networks={"csd": "0123"})
    with pytest.raises(InputError, match="fitted with another csd than"):
        preference.check_networks(name.removeprefix("preference:"), mini.directory("mini"), {"csd"})
    preference.check_networks(name.removeprefix("preference:"), mini.directory("mini"), {"judge"})


def test_verdicts_on_images_that_are_gone_do_not_count(tmp_path):
    judged_images.write(tmp_path)
    log, (group, *_) = Verdicts(tmp_path), rollout_store.groups(tmp_path / "rollouts")
    first, second, _ = group.images
    log.add(first, "joint/00000/1/0000", "left")
    log.add("../../etc/passwd", "b", "left")
    with pytest.raises(InputError, match="no verdicts on images of its roll-outs"):
        preference_fit.fit(tmp_path, "mini")
    log.add(first, second, "left")
    with pytest.raises(InputError, match="'bright' is no reward of a scorer"):
        preference_fit.fit(tmp_path, "mini", ["bright"])
    with pytest.raises(InputError, match="dino"):
        preference_fit.fit(tmp_path, "mini", ["dino_content"])


def test_the_command_refuses_to_overwrite(tmp_path, capsys):
    file = tmp_path / "scorer.json"
    file.write_text("mine")
    with pytest.raises(SystemExit) as end:
        prefer.main([str(tmp_path), "--to", str(file)])
    assert end.value.code == 2 and "exists" in capsys.readouterr().err and file.read_text() == "mine"


def test_an_absent_reference_is_zero_and_features_end_in_the_image(monkeypatch):
    one = dataclasses.replace(
        rewards.REWARDS["csd_style"],
        embed=lambda system, params, images: images.mean((1, 2))[:, :2],
        describe=lambda system, params, batch: jnp.array([[0.5, 2.0]] * 2),
    )
    monkeypatch.setitem(rewards.REWARDS, "csd_style", one)
    images = jnp.broadcast_to(jnp.array([1.0, 3.0, 0.0]), (2, 4, 4, 3))
    batch, system = {"style_valid": jnp.array([[True], [False]])}, USO(tiny.config("joint").system)
    described = preference.describe(system, {}, ["csd_style"], batch)
    found = preference.features(system, {}, images, ["csd_style"], described)
    np.testing.assert_allclose(found, [[6.5, 0.5, 6, 1, 3], [0, 0, 0, 1, 3]])
