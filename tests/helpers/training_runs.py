# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Whole runs of two stages that are watched: the batches they train on and the checkpoints they save."""

import contextlib
import hashlib
import json
import pathlib
from dataclasses import dataclass, field

import jax
import pytest
import tiny
from PIL import Image

import uso_jax.training.fit
import uso_jax.training.loop
from uso_jax.data import loader
from uso_jax.training.checkpoints import Checkpoints

# Where a write or a read fails on purpose, TensorStore's other requests report to an event loop that Orbax has closed.
EVENT_LOOP_IS_CLOSED = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. None[\s\S]*Event loop is closed:pytest.PytestUnraisableExceptionWarning"
)

# Stages of four steps and a checkpoint every two: global steps 2 and 6 lie inside a stage, 4 and 8 end one.
RUN, CHANGES = ("style_alignment", "joint"), {"checkpoint.every": 2, "heldout.every": 3}


def config(changes=None, **stage_changes):
    return tiny.config(*RUN, changes=CHANGES | (changes or {}), **({"ema_decay": 0.5} | stage_changes))


@dataclass
class Watch:
    """What a run did: the batches it trained on, by global order, and what it put into checkpoints, by step."""

    batches: list[str] = field(default_factory=list)
    sizes: list[tuple] = field(default_factory=list)  # (height, width) of target and content
    saved: dict[int, dict] = field(default_factory=dict)


def digest(batch) -> str:
    return hashlib.sha256(b"".join(batch[name].tobytes() for name in sorted(batch))).hexdigest()


@contextlib.contextmanager
def watched(before_batch=lambda number: None):
    """Watch a run; `before_batch(n)` is called before the run's n-th batch, counted from 1, and may end it."""
    watch = Watch()

    class Stream:
        def __init__(self, stream):
            self.stream = iter(stream)
            self.get_state, self.set_state = self.stream.get_state, self.stream.set_state
            self.close = self.stream.close

        def __iter__(self):
            return self

        def __next__(self):
            before_batch(len(watch.batches) + 1)
            batch = next(self.stream)
            watch.batches.append(digest(batch))
            watch.sizes.append((batch["target"].shape[1:3], batch["content"].shape[1:3]))
            return batch

    class Watched(Checkpoints):
        def save(self, step, arrays, record):
            watch.saved[step] = jax.device_get(arrays)
            super().save(step, arrays, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            uso_jax.training.loop, "batches", lambda *args, **options: Stream(loader.batches(*args, **options))
        )
        patch.setattr(uso_jax.training.fit, "Checkpoints", Watched)
        yield watch


def interrupt(at: int):
    def before_batch(number):
        if number == at:
            raise KeyboardInterrupt

    return before_batch


def files(workdir: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(workdir)): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def metrics(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_times(summary: dict) -> list[dict]:
    return [{key: value for key, value in stage.items() if key != "seconds"} for stage in summary["stages"]]


@dataclass
class Straight:
    workdir: pathlib.Path
    summary: dict
    watch: Watch


def json_data(folder: pathlib.Path, items: list) -> dict:
    """Write a good held-out set and a training set of `items`; return the changes of the configuration."""
    Image.new("RGB", (16, 16), "red").save(folder / "good.png")
    (folder / "bad.png").write_text("this is not an image")
    good = dict(prompt="red", content="good.png", styles=["good.png"], target="good.png")
    (folder / "heldout.json").write_text(json.dumps([good] * 8))
    (folder / "train.json").write_text(json.dumps([good | item for item in items]))
    return {
        "data.source": "json",
        "data.json.train.path": str(folder / "train.json"),
        "data.json.heldout.path": str(folder / "heldout.json"),
    }
