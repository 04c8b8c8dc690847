# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What loggers of other programs receive, from stand-ins for their packages; and which names are refused."""

import importlib.machinery
import json
import sys
import types

import numpy as np
import pytest
from PIL import Image

from uso_jax.common.errors import InputError
from uso_jax.training import loggers
from uso_jax.training.metric_writer import Metrics


class Service:
    """Records the calls of one package that takes metrics."""

    def __init__(self):
        self.runs, self.logged, self.finished, self.defined = [], [], 0, []

    def init(self, **arguments):
        self.runs.append(arguments)
        return self

    def log(self, values, **where):
        self.logged.append((values, where))

    def define_metric(self, *arguments, **settings):
        self.defined.append((arguments, settings))

    def finish(self):
        self.finished += 1


@pytest.fixture
def services(monkeypatch):
    """Stand-ins for wandb and trackio, as if they were installed."""
    made = {}
    for name in ("wandb", "trackio"):
        service, module = Service(), types.ModuleType(name)
        module.init, module.Image = service.init, lambda path: ("image", path)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
        made[name] = service
    return made


def identity(workdir, step=0):
    return loggers.Identity(workdir, "styles", {"seed": 3, "stages": [{"name": "joint"}]}, step)


def test_numbers_and_images_reach_every_logger(services, tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path := tmp_path / "grid.png")
    metrics = Metrics(identity(tmp_path), ("tensorboard", "wandb", "trackio"))
    metrics.write(1, "joint", {"loss": 0.5})
    metrics.image(1, "joint", path)
    metrics.board(2, "speed", {"images_per_second": 4.0})
    metrics.close()
    wandb, trackio = services["wandb"], services["trackio"]
    assert [values for values, _ in wandb.logged] == [
        {"joint/loss": 0.5, "step": 1},
        {"samples/joint": ("image", str(path)), "step": 1},
        {"speed/images_per_second": 4.0, "step": 2},
    ]
    assert [(set(values), where) for values, where in trackio.logged] == [
        ({"joint/loss"}, {"step": 1}),
        ({"samples/joint"}, {"step": 1}),
        ({"speed/images_per_second"}, {"step": 2}),
    ]
    assert wandb.finished == trackio.finished == 1 and (("*",), {"step_metric": "step"}) in wandb.defined
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "stage": "joint", "loss": 0.5}
    assert list((tmp_path / "tensorboard").iterdir())


def test_attempts_of_a_run_are_one_run_of_wandb(services, tmp_path):
    for step in (0, 3):
        Metrics(identity(tmp_path, step), ("wandb",)).close()
    (tmp_path / "other").mkdir()
    Metrics(identity(tmp_path / "other"), ("wandb",)).close()
    first, second, other = (run["id"] for run in services["wandb"].runs)
    assert first == second != other
    run = services["wandb"].runs[0]
    assert (run["project"], run["name"], run["resume"]) == ("styles", tmp_path.name, "allow")
    assert run["config"]["seed"] == 3


def test_no_logger_still_writes_the_numbers(tmp_path):
    metrics = Metrics(identity(tmp_path), ())
    metrics.write(1, "joint", {"loss": 0.5})
    metrics.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_names_that_are_refused(monkeypatch):
    with pytest.raises(InputError, match="'comet' is unknown; known are tensorboard, wandb, trackio"):
        loggers.check(("comet",))
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install wandb"):
        loggers.check(("wandb",))
