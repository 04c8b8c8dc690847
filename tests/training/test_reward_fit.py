# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Whole runs with a reward: resuming across the step where it begins, stopping, and what is refused beforehand."""

import dataclasses
import json

import numpy as np
import pytest
import tiny
import training_runs as runs
from comparison import assert_same

import uso_jax.training.fit
import uso_jax.training.hooks
from uso_jax import weights
from uso_jax.common.errors import InputError
from uso_jax.models.components import component_of
from uso_jax.training import preflight, rewards
from uso_jax.training.fit import fit
from uso_jax.training.rewards import REWARDS, Reward
from uso_jax.training.stage import RewardConfig
from uso_jax.training.validation import is_cheating

pytestmark = [pytest.mark.slow, runs.EVENT_LOOP_IS_CLOSED]  # compiles or runs whole programs
FRESH = {"model.fresh": ("csd", "judge", "lora", "projector")}
REWARD = dict(weights=dict(csd_style=1.0), start=3, num_steps=3, last=2, anchor=0.1, judges=("judge_style",))
IMAGES = ("saturation", "contrast", "leakage")


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


def config(changes=None, *, run=("joint",), stage=None, **values):
    changes = FRESH | {"checkpoint.every": 2} | (changes or {})
    chosen = tiny.config(*run, changes=changes, reward=REWARD | values, **(stage or {}))
    return dataclasses.replace(chosen, evaluation=None)  # its table needs more than these tests


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Train four steps without a stop, the last of them with the reward; keep all parameters before and after."""
    workdir, seen = tmp_path_factory.mktemp("straight"), []
    run_stage = uso_jax.training.fit.run_stage

    def watched(run, index, params, *rest):
        seen.append({path: np.asarray(x) for path, x in params.items()})
        after = run_stage(run, index, params, *rest)
        seen.append({path: np.asarray(x) for path, x in after.items()})
        return after

    with pytest.MonkeyPatch.context() as patch, runs.watched() as watch:
        patch.setattr(uso_jax.training.fit, "run_stage", watched)
        return runs.Straight(workdir, fit(config(), workdir), watch), *seen


def test_metrics_and_summary(straight):
    run, *_ = straight
    lines = runs.metrics(run.workdir)
    trained = [line for line in lines if "loss" in line]
    assert ["reward_csd_style" in line for line in trained] == [False, False, False, True]
    assert ["loss_reward" in line for line in trained] == [False, False, False, True]
    judged = [line for line in lines if "heldout_reward" in line]
    # Once before the reward begins, once after it.
    assert [line["step"] for line in judged] == [3, 4]
    for line in judged:
        assert {"heldout_csd_style", "heldout_judge_style", *IMAGES} <= set(line)
        assert 0 <= line["saturation"] <= 1 and 0 <= line["contrast"] <= 0.5 and -1 <= line["leakage"] <= 1
    assert [entry["step"] for entry in run.summary["stages"][0]["reward"]] == [3, 4]
    assert sorted(path.name for path in (run.workdir / "samples").iterdir()) == ["000003_joint.png", "000004_joint.png"]


def test_only_what_the_stage_trains_has_changed(straight):
    _, before, after = straight
    changed = {path for path, value in before.items() if not np.array_equal(value, after[path])}
    assert changed and all("/processor/" in path or "/feature_embedder/" in path for path in changed)
    assert {path.split("/")[0] for path in before} >= {"autoencoder", "csd", "text", "siglip", "judge"}


def test_resumed_across_the_start_equals_straight(straight, tmp_path):
    run, *_ = straight
    assert set(run.watch.saved[2]) == {"params", "opt_state", "ema", "anchor"}
    with runs.watched(runs.interrupt(4)) as watch, pytest.raises(KeyboardInterrupt):
        fit(config(), tmp_path)
    assert_same(watch.saved[2], run.watch.saved[2])
    with runs.watched() as watch:
        fit(config(), tmp_path)
    assert_same(watch.saved[4], run.watch.saved[4])
    assert runs.metrics(tmp_path) == runs.metrics(run.workdir)


def test_a_reward_that_is_never_finite_stops_the_run(monkeypatch, tmp_path):
    def score(system, params, images, _):
        return np.nan * images.mean(axis=(1, 2, 3))

    monkeypatch.setitem(REWARDS, "nothing", Reward(score=score))
    settings = config(weights=dict(nothing=1.0), start=1, max_skipped=2, anchor=0.0, judges=())
    with pytest.raises(InputError, match=r"\(nothing\) .* was not finite in 2 steps in a row, the last of them step 3"):
        fit(settings, tmp_path)
    skipped = [line["reward_skipped"] for line in runs.metrics(tmp_path) if "reward_skipped" in line]
    assert skipped == [0, 1]
    # The count goes on after a resume from the checkpoint of step 2, in which one skipped step is on record.
    with pytest.raises(InputError, match="was not finite in 2 steps in a row, the last of them step 3"):
        fit(settings, tmp_path)


# ---------------------------------------------------------------------------------------------------- early stop


def test_cheating_is_a_judge_that_falls_while_the_reward_rises():
    watching = RewardConfig(dict(csd_style=1.0), 0, judges=("judge_style", "clip_text"), patience=2, tolerance=0.02)
    entry = lambda reward, style, text=0.3: dict(
        heldout_reward=reward, heldout_judge_style=style, heldout_clip_text=text
    )
    start = entry(0.4, 0.5)
    falls = [entry(0.5, 0.4), entry(0.6, 0.3)]
    assert is_cheating(watching, [start, *falls])
    assert not is_cheating(watching, [start, falls[0]])  # once only
    assert not is_cheating(watching, [start, falls[0], entry(0.6, 0.55), falls[1]])  # not in a row
    assert not is_cheating(watching, [start, entry(0.5, 0.49), entry(0.6, 0.49)])  # within the tolerance
    assert not is_cheating(watching, [start, entry(0.3, 0.4), entry(0.2, 0.3)])  # the reward falls too
    assert is_cheating(watching, [start, entry(0.5, 0.6, 0.2), entry(0.6, 0.7, 0.1)])  # the other judge falls
    assert not is_cheating(RewardConfig(dict(csd_style=1.0), 0, judges=("judge_style",)), [start, *falls])


def test_early_stop_ends_the_stage_for_good(monkeypatch, tmp_path):
    monkeypatch.setattr(uso_jax.training.hooks, "is_cheating", lambda reward, history: history[-1]["step"] == 2)
    settings = config({"heldout.grid_every": 1}, start=1, patience=1, anchor=0.0, run=("joint", "disentanglement"))
    with runs.watched(runs.interrupt(4)) as watch, pytest.raises(KeyboardInterrupt):
        fit(settings, tmp_path)
    assert max(watch.saved) == 2
    # The second stage begins where it would have begun, and stops early as well.
    with runs.watched() as watch:
        summary = fit(settings, tmp_path)
    assert [stage["stopped"] for stage in summary["stages"]] == [2, 2]
    assert len(watch.batches) == 2 and max(watch.saved) == 6
    with runs.watched() as watch:
        assert fit(settings, tmp_path) == summary
    assert watch.batches == []


# ---------------------------------------------------------------------------------------------------- bad input


def test_missing_weights_of_a_reward(tmp_path):
    with pytest.raises(InputError, match=r"stage 'joint', reward: there are no weights of csd, judge, and a network"):
        fit(config({"model.fresh": ("lora", "projector")}), tmp_path / "run")
    (tmp_path / "weights").mkdir()
    parts = tiny.config("joint", changes=FRESH)
    with pytest.raises(InputError, match=r"/weights has no csd, which no stage trains"):
        settings = {"model.weights": str(tmp_path / "weights")}
        settings["model.fresh"] = ("lora", "projector", "transformer", "autoencoder", "siglip", "t5", "clip", "judge")
        fit(config(settings), tmp_path / "other")
    assert parts.run_stages[0].reward is None and not (tmp_path / "other" / "checkpoints" / "4").exists()


def test_rewards_come_from_the_weights_directory(tmp_path, monkeypatch):
    settings = config({"model.weights": str(tmp_path), "model.fresh": ("vgg",)}, weights=dict(csd_style=1.0), judges=())
    from uso_jax.models.uso import USO
    from uso_jax.parallel import sharding
    from uso_jax.training import init

    system, mesh = USO(settings.system), sharding.make_mesh(settings.mesh)
    where = sharding.shardings(mesh, settings.rules, system.shapes)
    everything = tiny.drawn(system, seed=1)
    parts: dict[str, dict] = {}
    for path, value in everything.items():
        name, inner = component_of(path)
        parts.setdefault(name, {})[inner] = np.asarray(value)
    for name in ("transformer", "lora", "projector", "autoencoder", "siglip", "t5", "clip", "csd"):
        weights.save(tmp_path, name, parts[name], {"config": {}})
    trained = set(settings.run_stages[0].lr_multipliers(system.shapes))
    found = init.initial_params(settings, system, where, trained)
    for path, value in everything.items():
        if path.startswith("csd/"):
            np.testing.assert_array_equal(found[path], value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(weights={}), "weights are empty"),
        (dict(weights=dict(shine=1.0)), "unknown reward 'shine'; known are csd_style, gram_style"),
        (dict(judges=("shine",)), "unknown reward 'shine'"),
        (dict(judges=("csd_style",)), "csd_style cannot judge what it rewards"),
        (dict(phi="square"), "phi must be 'negative' or 'clip', not 'square'"),
        (dict(last=4), "1 <= first <= last <= num_steps"),
        (dict(first=0), "1 <= first <= last <= num_steps"),
        (dict(gradient_steps=3), r"not 1 <= 1 <= 2 <= 3 - 3 \+ 1"),
        (dict(start=-1), "start, patience, anchor and tolerance must be at least 0"),
        (dict(blocks=3), "batch_size / accumulate is 8, which does not divide by blocks 3"),
        (dict(tile=20), "reward: tile 20 must be a multiple of 16 pixels, or 0 to decode whole images"),
        (dict(patience=1, judges=()), "patience needs at least one of judges"),
        (dict(patience=1), "patience needs images to judge; set config.heldout.grid_every"),
        (dict(weights=dict(dino_content=1.0)), "needs dino, but config.model.rewards has no sizes of it"),
        (dict(wieghts=dict(csd_style=1.0)), "has no 'wieghts'; it has weights, start"),
    ],
)
def test_reward_settings_that_make_no_sense(values, message):
    with pytest.raises(InputError, match=message):
        preflight.check_stages(config(**values))


def test_rewards_that_do_not_fit_the_stage():
    with pytest.raises(InputError, match="only the loss 'flow_matching' makes images to reward, not 'descriptors'"):
        config(stage=dict(loss="descriptors"))
    with pytest.raises(InputError, match="csd_style needs the style condition, which the stage lacks"):
        preflight.check_stages(config(stage=dict(conditions=("content",))))


def test_checkpoint_of_another_reward(straight):
    run, *_ = straight
    with pytest.raises(InputError, match=r"stages\[0\]\.reward\.start was 3, is 2"):
        fit(config(start=2), run.workdir)


def test_recipes():
    get = tiny._USO["get_config"]
    stages = get("flux_dev").stages
    assert [stages[name].reward.start for name in ("style_alignment", "disentanglement")] == [16_000, 18_000]
    for reward in (
        stages["style_alignment"].reward,
        stages["disentanglement"].reward,
        get("flux_dev_joint").stages["joint"].reward,
    ):
        assert reward.weights == {"csd_style": 1.0}
        assert (reward.num_steps, reward.first, reward.last, reward.guidance, reward.scale) == (25, 1, 10, 4.0, 1.0)
    assert get("mini32").run == ("style_alignment", "disentanglement")
    for name in get("mini32").run:
        stage = get("mini32").stages[name]
        assert 0 < stage.reward.start < stage.steps
        rewards.check_names((*stage.reward.weights, *stage.reward.judges), "mini")


def test_a_scale_of_0_is_no_reward():
    (stage,) = config(scale=0.0).run_stages
    assert stage.reward is None


def test_full_size_networks_of_the_recipe():
    config = tiny._USO["get_config"]("flux_dev")
    sizes = config.system
    assert sizes.networks["csd"].hidden_size == 1024 and sizes.networks["clip_model"].vision.patch_size == 32
    assert not {"dino", "vgg"} & sizes.networks.keys()  # in the file, but no stage names them
    assert json.dumps(sorted(config.model.rewards)) == '["clip_text", "clip_vision", "csd", "dino", "vgg"]'
