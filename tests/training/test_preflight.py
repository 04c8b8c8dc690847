# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Mistakes that are found before a run reads weights or data."""

import os
import subprocess
import sys

import jax
import pytest
import tiny
from training_runs import json_data

from uso_jax.common.errors import InputError
from uso_jax.parallel import sharding
from uso_jax.planning import programs
from uso_jax.training import preflight
from uso_jax.training.policy import PolicyConfig


def check(config, workdir):
    return preflight.check(config, sharding.make_mesh(config.mesh), workdir)


def test_a_sound_run_passes_and_leaves_nothing_behind(tmp_path):
    system = check(tiny.config("joint"), tmp_path / "a" / "run")
    assert "transformer" in system.structures and not list((tmp_path / "a" / "run").iterdir())


def test_unknown_loss(tmp_path):
    config = tiny.config("joint", loss="flow")
    with pytest.raises(InputError, match="'joint': unknown loss 'flow'; known are flow_matching, guidance"):
        check(config, tmp_path)
    with pytest.raises(InputError, match="unknown loss 'flow'"):
        programs.build_programs(config, jax.devices(), programs.Choices("train"))


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="nowhere is not a weights directory"):
        check(tiny.config("joint", changes={"model.weights": str(tmp_path / "nowhere")}), tmp_path / "run")
    (tmp_path / "weights").mkdir()
    with pytest.raises(InputError, match=r"weights has no .*transformer.*, which no stage trains.* --to "):
        check(tiny.config("joint", changes={"model.weights": str(tmp_path / "weights")}), tmp_path / "run")


def test_data_that_is_not_there(tmp_path):
    changes = json_data(tmp_path, [{}])
    check(tiny.config("joint", changes=changes), tmp_path / "run")
    (tmp_path / "heldout.json").unlink()
    with pytest.raises(InputError, match=r"heldout\.json does not exist: correct --config\.data\.json\.heldout\.path"):
        check(tiny.config("joint", changes=changes), tmp_path / "run")


def test_workdir_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # a superuser may write anywhere
    with pytest.raises(InputError, match=f"cannot use --workdir {tmp_path}: it is not writable"):
        check(tiny.config("joint"), tmp_path)


def test_heads_that_the_mesh_cannot_share(tmp_path):
    config = tiny.config("joint", changes={"mesh.data": 2, "mesh.sequence": 4})
    with pytest.raises(InputError, match="2 attention heads do not divide by mesh axes"):
        check(config, tmp_path)
    with pytest.raises(InputError, match="2 attention heads do not divide by mesh axes"):
        programs.build_programs(config, jax.devices(), programs.Choices("train"))


def test_a_stage_as_data_loads_no_training_stack():
    code = "import sys, uso_jax.training.stage; print(*(name for name in sys.modules if name.startswith('uso_jax.')))"
    run = subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "uso_jax.training.stage" in loaded
    assert not loaded & {"uso_jax.training.rewards", "uso_jax.training.objectives", "uso_jax.models.uso"}


POLICIES = {
    "unknown black box 'x'": dict(black_boxes={"x": 1.0}),
    "set --config.stages.joint.policy.vlm.model": dict(black_boxes={"vlm_style": 1.0}),
    "unknown reward 'y'": dict(weights={"y": 1.0}),
}


@pytest.mark.parametrize("words", POLICIES)
def test_policies_that_cannot_be_followed(words):
    policy = PolicyConfig(**{"weights": {"csd_style": 1.0}} | POLICIES[words])
    with pytest.raises(InputError, match=words):
        preflight.check_stages(tiny.config("joint", reward=None, policy=policy))


def test_images_of_a_round_divide_over_devices():
    config = tiny.config("joint", reward=None, policy=PolicyConfig(sample_batch=1))
    with pytest.raises(InputError, match=r"policy\.sample_batch is 1, which does not divide over"):
        preflight.check_mesh(config, sharding.make_mesh({"data": -1, "fsdp": 1, "sequence": 1, "tensor": 1}))


def test_a_base_guided_by_a_second_pass_has_no_densities(tmp_path):
    policy = PolicyConfig(method="grpo", weights={}, black_boxes={"true_style": 1.0})
    with pytest.raises(InputError, match=r"policy\.guidance=1"):
        preflight.check_stages(tiny.klein("klein_joint", tmp_path, "joint", reward=None, policy=policy))


def test_black_boxes_need_images():
    policy = PolicyConfig(weights={}, black_boxes={"true_style": 1.0})
    config = tiny.config("joint", changes={"data.encode_first": True}, reward=None, policy=policy)
    with pytest.raises(InputError, match="which features do not hold"):
        preflight.check_stages(config)
