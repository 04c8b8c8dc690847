# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`python scripts/train.py` as a user runs it: what it says, and how it ends."""

import json
import os
import subprocess
import sys

import forks
import pytest
import tiny
import xla_flags

pytestmark = pytest.mark.slow  # compiles or runs whole programs

SMALL = [
    "--config.model.weights=",
    "--config.stages.words.steps=5",
    "--config.stages.words.batch_size=8",
    "--config.stages.disentanglement.steps=5",
    "--config.stages.disentanglement.reward.scale=0",
    "--config.model.transformer.hidden_size=32",
    "--config.model.transformer.num_heads=2",
    "--config.model.transformer.axes_dim=(4, 6, 6)",
    "--config.model.transformer.depth=1",
    "--config.model.transformer.depth_single_blocks=1",
    "--config.heldout.num_batches=1",
    "--config.heldout.batch_size=8",
    "--config.heldout.num_steps=2",
    "--config.evaluation.num_triplets=8",
    "--config.evaluation.batch_size=8",
]


def train(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "scripts/train.py", *arguments],
        cwd=tiny.ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags.flags()} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_trains_every_stage_and_keeps_compiled_programs(tmp_path):
    environment = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    run = train("--config", "configs/uso.py", f"--workdir={tmp_path}", *SMALL, **environment)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == f"Training variant 'mini' in {tmp_path}: words, disentanglement."
    assert "12 B" in lines[1] and "--config configs/uso.py:flux_dev" in lines[1]
    table = [line.split() for line in lines if line]
    start = next(i for i, words in enumerate(table) if words[0] == "stage")
    stages = json.loads((tmp_path / "summary.json").read_text())["stages"]
    assert [stage["name"] for stage in stages] == ["words", "disentanglement"]
    for words, stage in zip(table[start + 1 :], stages, strict=False):
        losses = [f"{stage[f'heldout_loss_{when}']:.4f}" for when in ("before", "after")]
        assert words == [stage["name"], "5", f"{stage['seconds']:.0f}", *losses]
    assert str(tmp_path / "samples") in lines[-1] and "tensorboard --logdir" in lines[-1]
    # Only progress bars go to stderr: no warnings, and no search for a TPU.
    assert "Warning" not in run.stderr and "initialize backend" not in run.stderr
    assert any("train_step" in path.name for path in (tmp_path / "cache" / "uso_jax" / "compiled").iterdir())


def test_a_mistake_is_one_sentence(tmp_path):
    run = train("--config", "configs/uso.py", "--config.data.source_=emoji", f"--workdir={tmp_path / 'run'}")
    check_mistake(run, "there is no setting --config.data.source_; did you mean --config.data.source?", tmp_path)


def check_mistake(run, message, tmp_path):
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1 and message in run.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config.heldout.step", "3"],
            "there is no setting --config.heldout.step; did you mean --config.heldout.num_steps?",
        ),
        (
            ["--config=configs/uso.py:nonsense"],
            "unknown variant 'nonsense'; known are mini, mini32, flux_dev, flux_dev_joint",
        ),
        (["--config.seed=abc"], "--config.seed=abc: 'abc' is not a whole number"),
        (
            ["--coordinator=localhost:1", "--process_id=0"],
            "needs --coordinator, --num_processes and --process_id together (or"
            " JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID)",
        ),
        (["--config=absent.py"], "no configuration file absent.py"),
    ],
)
def test_other_mistakes(arguments, message, tmp_path):
    check_mistake(forks.command("scripts/train.py", *arguments, f"--workdir={tmp_path / 'run'}"), message, tmp_path)
