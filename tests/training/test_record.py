# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The record of a run keeps the JSON of checkpoints and of summary.json."""

import copy
import dataclasses
import json

import pytest
import tiny

from uso_jax.common.errors import InputError
from uso_jax.training import resume
from uso_jax.training.config import override
from uso_jax.training.record import RunRecord, StageRecord

# As runs wrote it when the record was a dict: the first stage done, the second at step 3 of 4.
WRITTEN = {
    "config": {"seed": 0, "stages": [{"name": "style_alignment"}, {"name": "joint"}]},
    "stage": 1,
    "step": 3,
    "data": {"next_index": 3},
    "seconds": 2.5,
    "productive_seconds": 4.25,
    "stages": [
        {
            "name": "style_alignment",
            "steps": 4,
            "heldout_loss_before": 0.9,
            "reward": [{"step": 2, "heldout_reward": 0.1, "saturation": 0.5}],
            "skipped": 1,
            "stopped": 2,
            "seconds": 3.1,
            "heldout_loss_after": 0.7,
            "evaluation": {"main": {"mse": 0.1}, "style": {"csd": 0.3}},
        },
        {"name": "joint", "steps": 4, "heldout_loss_before": 0.8},
    ],
    "evaluation": {"main": {"before": {"mse": 0.2}, "after": {"mse": 0.1}}, "style": {"before": {"csd": 0.2}}},
    "skipped_in_a_row": 0,
    "rollbacks": [{"stage": "joint", "step": 6, "to": 4}],
}
FRESH = {"config": {}, "stage": 0, "step": 0, "data": None, "seconds": 0.0, "productive_seconds": 0.0, "stages": []}


def test_json_stays_as_it_was():
    assert json.dumps(RunRecord.from_json(WRITTEN).to_json()) == json.dumps(WRITTEN)
    assert json.dumps(RunRecord({}).to_json()) == json.dumps(FRESH) == json.dumps(RunRecord.from_json(FRESH).to_json())


def test_json_shares_nothing_with_the_record():
    record = RunRecord.from_json(copy.deepcopy(WRITTEN))
    written = record.to_json()
    record.stages[0].reward.append({"step": 4})
    record.evaluation["main"]["after"]["mse"] = 7.0
    assert written == WRITTEN


def test_summary():
    record = RunRecord.from_json(WRITTEN)
    assert record.summary("mini") == {
        "variant": "mini",
        "stages": WRITTEN["stages"],
        "rollbacks": WRITTEN["rollbacks"],
        "evaluation": WRITTEN["evaluation"]["main"],
        "tables": {"style": WRITTEN["evaluation"]["style"]},
    }
    assert record.to_json() == WRITTEN
    assert RunRecord({}).summary("mini") == {"variant": "mini", "stages": []}


@pytest.mark.parametrize(
    ("stage", "step", "stopped", "finished"),
    [(0, 4, None, False), (1, 4, None, True), (1, 3, None, False), (1, 2, 2, True)],
)
def test_where_a_run_ends(stage, step, stopped, finished):
    stages = tiny.config("style_alignment", "joint").run_stages
    done = [StageRecord("style_alignment", 4, 0.9), StageRecord("joint", 4, 0.8, stopped=stopped)]
    record = RunRecord({}, stage=stage, step=step, stages=done[: stage + 1])
    assert record.is_finished(stages) == finished
    assert record.last_step(stages[stage]) == (stopped or 4)
    record.begin_stage(1)
    assert (record.stage, record.step, record.data, record.seconds) == (1, 0, None, 0.0)


def test_settings_that_a_checkpoint_does_not_know_had_their_defaults(tmp_path):
    (stage,) = tiny.config("joint").run_stages
    config = dataclasses.replace(tiny.config("joint"), run=("joint",))
    saved = config.fingerprint()
    for name in ("timesteps", "loss_weight", "restarts"):
        del saved["stages"][0][name]
    resume.check_same_config(saved, config.fingerprint(), tmp_path)
    changed = dataclasses.replace(config, stages={"joint": dataclasses.replace(stage, timesteps="mode")})
    with pytest.raises(InputError, match=r"stages\[0\]\.timesteps was 'uniform', is 'mode'"):
        resume.check_same_config(saved, changed.fingerprint(), tmp_path)


def test_options_of_a_source_that_a_checkpoint_does_not_know_had_their_defaults(tmp_path):
    folder = {"data.source": "folder", "data.folder.train.path": "x"}
    config = tiny.config("joint", changes=folder)
    saved = config.fingerprint()
    assert saved["data"].pop("caption") == ""
    resume.check_same_config(saved, config.fingerprint(), tmp_path)
    with pytest.raises(InputError, match=r"data\.caption was '', is 'a'"):
        resume.check_same_config(saved, override(config, {"data.folder.caption": "a"}).fingerprint(), tmp_path)
