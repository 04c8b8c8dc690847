# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the training page starts, and what it reads of a run's directory."""

import json
import os
import signal
import subprocess
import sys

import pytest

from uso_jax.app import run_view, training_text
from uso_jax.app.run_view import read_run
from uso_jax.app.trainer import Trainer, export_arguments, shown
from uso_jax.app.training_folder import TrainingFolder
from uso_jax.app.training_settings import TrainingSettings, check_arguments, recipes
from uso_jax.commands import app
from uso_jax.common import locks, run_file
from uso_jax.common.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for name in ("mine/1.png", "runs/old/samples/000010_adapters.png", "weights/lora/manifest.json", "a b/c/d/e/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return TrainingFolder(tmp_path)


@pytest.fixture
def trainer(folder):
    return Trainer(folder)


def mine(**changes) -> TrainingSettings:
    return TrainingSettings(**{"data": "mine", "recipe": "mini"} | changes)


# ---------------------------------------------------------------------------------------------------- settings


def test_the_command_is_what_a_person_would_type(folder):
    assert shown("uso-train", mine().arguments(folder)) == (
        "uso-train --config finetune:mini --data mine --workdir runs/mine"
    )
    full = mine(recipe="klein", name="my run", weights="weights", steps=9, learning_rate=1e-5, every=3, caption="a b")
    assert full.arguments(folder)[5:] == [
        "runs/my run", "--config.model.weights=weights", "--steps", "9",
        f"--config.stages.{_stage('klein')}.learning_rate=1e-05",
        "--config.heldout.grid_every=3", "--config.heldout.every=3", "--config.data.folder.caption=a b",
    ]  # fmt: skip
    assert export_arguments("runs/x", "comfy") == (
        ["export", "runs/x", "--format", "comfy", "--to", "runs/x/adapter", "--overwrite"]
    )


def _stage(recipe: str) -> str:
    from uso_jax.common.config_flag import load_config

    return load_config(f"finetune:{recipe}").run[0]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"data": ""}, "choose a data"),
        ({"data": "absent"}, "'absent' does not exist"),
        ({"data": "../.."}, "lies outside"),
        ({"data": "/etc"}, "lies outside"),
        ({"weights": "/etc"}, "lies outside"),
        ({"recipe": "huge"}, "recipe 'huge' is unknown.*mini"),
        ({"name": "../x"}, "name '../x'"),
        ({"name": "-x"}, "name '-x'"),
        ({"steps": -1}, "steps is -1"),
        ({"learning_rate": 2.0}, "learning rate 2.0"),
        ({"caption": "a\nb"}, "one line"),
    ],
)
def test_mistakes_are_sentences(folder, changes, said):
    with pytest.raises(InputError, match=said):
        mine(**changes).arguments(folder)


def test_a_link_does_not_lead_out_of_the_folder(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (folder.path / "link").symlink_to(outside)
    with pytest.raises(InputError, match="lies outside"):
        mine(data="link").arguments(folder)
    with pytest.raises(InputError, match="lies outside"):
        folder.workdir("link/run")


def test_lists_hold_what_is_there(folder):
    (folder.path / "runs" / "old" / "metrics.jsonl").touch()
    assert (folder.data(), folder.weights(), folder.runs()) == (["mine"], ["weights"], ["runs/old"])
    with pytest.raises(InputError, match="is not a folder"):
        TrainingFolder(folder.path / "absent")


# ---------------------------------------------------------------------------------------------------- a run's directory


def write_run(workdir, *, steps=100, loss=(), log="", **files) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    run_file.write(workdir, ["--config", "finetune:mini", "--workdir", "runs/old"], {"adapters": steps})
    lines = [{"step": 10 * (number + 1), "stage": "a", "loss": value} for number, value in enumerate(loss)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9')
    (workdir / "speed.jsonl").write_text('{"step": 10, "step_seconds": 2.0, "run_seconds": 20}\n')
    (workdir / "log.txt").write_text(log)
    for name, text in files.items():
        (workdir / name.replace("_json", ".json")).write_text(text)


def test_a_run_under_way(folder):
    workdir = folder.path / "runs" / "old"
    write_run(
        workdir, loss=[3.0, float("nan"), 1.0], log="$ uso-train\nadapters: 30% 30/100 [00:31<00:38, 3.4s/step]\n"
    )
    view = read_run(workdir, runs=True)
    assert (view.state, view.step, view.steps, view.remaining) == ("running", 30, 100, 140.0)
    assert view.curves == {"training loss": [(10.0, 3.0), (30.0, 1.0)]} and view.phase == "adapters: 30% 30/100"
    assert [path.name for path in view.grids] == ["000010_adapters.png"] and not view.saved
    said = training_text.status(view)
    assert "about 2 min to go" in said and 'value="30" max="100"' in said


@pytest.mark.parametrize(
    "log, code, summary, state, phase",
    [
        ("adapters 0/6\n", None, "", "stopped", ""),
        ("ending after this step and a save\n", 130, "", "stopped", ""),
        ("error: the data <is> bad\n", 2, "", "failed", "the data <is> bad"),
        ("error: old\n$ uso-train\n", 130, "", "stopped", ""),
        ("Traceback:\nKeyboardInterrupt\n", -2, "", "stopped", ""),
        ("Killed\n", -9, "", "failed", "exit code -9"),
        ("", 0, "{}", "finished", ""),
    ],
)
def test_how_a_run_ended(folder, log, code, summary, state, phase):
    workdir = folder.path / "runs" / "old"
    write_run(workdir, loss=[1.0], log=f"$ uso-train\n{log}", **({"summary_json": summary} if summary else {}))
    view = read_run(workdir, runs=False, code=code)
    assert view.state == state and phase in view.phase
    assert "<is>" not in training_text.status(view)


def test_a_full_disk_is_named(folder, monkeypatch):
    write_run(folder.path / "runs" / "old")
    usage = type("Usage", (), {"free": 0})
    monkeypatch.setattr(run_view.shutil, "disk_usage", lambda path: usage)
    assert "is full; free some space" in read_run(folder.path / "runs" / "old", runs=False, code=1).phase


def test_a_long_curve_is_thinned_to_means():
    curve = run_view.thin([(float(step), float(step)) for step in range(1, 4001)])
    assert len(curve) == run_view.POINTS and curve[0] == (10.5, 10.5) and curve[-1] == (3990.5, 3990.5)


def test_a_plan_shows_what_decides_first():
    found = [
        dict(subject="mesh", state="ok", text="data 1", remedy=""),
        dict(subject="time", state="ok", text="at least 12 min", remedy=""),
        dict(subject="weights", state="problem", text="<none>", remedy="uso-convert download"),
    ]
    said = training_text.findings(found)
    assert said.index("&lt;none&gt;") < said.index("at least 12 min") < said.index("data 1") and "cannot start" in said


# ---------------------------------------------------------------------------------------------------- processes

HOLD = """
import signal, sys, time
from uso_jax.common import locks
signal.signal(signal.SIGINT, lambda *_: sys.exit(7))
with locks.hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_found_by_its_lock_and_stopped(folder):
    workdir = folder.path / "runs" / "old"
    write_run(workdir, log="")
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(workdir)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        trainer = Trainer(folder)  # as of an app that was started again
        assert trainer.running() == "runs/old" and trainer.view("runs/old").state == "starting"
        with pytest.raises(InputError, match="runs/old is being trained"):
            trainer.start(mine())
        trainer.stop("runs/old")
        assert process.wait(20) == 7
    finally:
        process.kill()
        process.stdout.close()
    assert trainer.running() == "" and locks.writer(workdir) is None
    with pytest.raises(InputError, match="does not run"):
        trainer.stop("runs/old")


def test_one_stop_sends_one_signal(trainer, monkeypatch):
    write_run(trainer.folder.path / "runs" / "old")
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setattr(locks, "writer", lambda path: locks.Writer(7, ""))
    trainer.stop("runs/old")
    trainer.stop("runs/old")
    assert sent == [(7, signal.SIGINT)]
    monkeypatch.setattr(locks, "writer", lambda path: locks.Writer(7, "node12"))
    with pytest.raises(InputError, match="runs on node12"):
        trainer.stop("runs/old")


def test_what_cannot_be_continued_is_refused(trainer, tmp_path):
    workdir = trainer.folder.path / "runs" / "old"
    with pytest.raises(InputError, match="does not say how it was started"):
        trainer.resume("runs/old")
    write_run(workdir)
    found = json.loads((workdir / run_file.NAME).read_text())
    (workdir / run_file.NAME).write_text(json.dumps(found | {"folder": str(tmp_path / "runs")}))
    with pytest.raises(InputError, match="was moved"):
        trainer.resume("runs/old")
    for arguments in (["--config", "evil.py"], ["--config=configs/uso.py"], [], ["--config=finetune", "--flagfile=x"]):
        with pytest.raises(InputError, match="continues runs of --config finetune only"):
            check_arguments(arguments)
    check_arguments(["--config=finetune:mini", "--data", "x", "--config.seed=3"])


def test_a_device_that_is_held_starts_nothing(folder):
    trainer = Trainer(folder, "the accelerator is held")
    for start in (lambda: trainer.start(mine()), lambda: trainer.plan(mine())):
        with pytest.raises(InputError, match="is held"):
            start()


def test_a_server_that_others_reach_does_not_train(monkeypatch, tmp_path):
    from uso_jax.app import server

    served = []
    monkeypatch.setattr(server, "serve", lambda pipe, **options: served.append((pipe, options["trainer"])))
    monkeypatch.setattr(app, "load_weights", lambda args: "pipe")
    for arguments in (["--host", "0.0.0.0"], ["--training", "off"], ["--host", "0.0.0.0", "--training", "on"], []):
        app.main([*arguments, "--training_folder", str(tmp_path)])
    app.main(["--training", "only", "--training_folder", str(tmp_path)])
    assert [(pipe, trainer is not None) for pipe, trainer in served] == [
        ("pipe", False), ("pipe", False), ("pipe", True), ("pipe", True), (None, True),
    ]  # fmt: skip
    assert recipes().keys() >= {"mini", "flux_dev"}
