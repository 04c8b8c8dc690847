# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How well a run uses its time: seconds a step, goodput, and the share of the chips' peak (MFU).

Goodput is the time of steps that the result contains, over the time that all attempts of the run took: starting,
compiling, judging, waiting for a save, and steps that a stop or a roll-back undid count against it. So does the
first step after each start of a stage, since most of it is compilation. MFU is the operations that the model needs,
nothing recomputed (uso_jax.flops), over what the devices could have done in a step's time.

These figures depend on the clock, so they are apart from metrics.jsonl, which two equal runs write equally.
"""

import json
import pathlib
import time
from collections.abc import Mapping

import jax
import numpy as np

from uso_jax import chips, flops, precompute, programs
from uso_jax.config import TrainConfig
from uso_jax.metrics import Metrics
from uso_jax.stage import StageConfig
from uso_jax.train import make_train_step

FILE = "speed.jsonl"  # a line every log_every steps, of all attempts


class Speed:
    """The clock of one attempt of a run; `productive` is what the run's record keeps of it."""

    def __init__(self, workdir: pathlib.Path, productive: float):
        self.productive, self._path = productive, workdir / FILE
        self._start, self._earlier = time.monotonic(), _seconds_before(self._path)
        self._mark, self._first = self._start, True
        self._steps = self._seconds = self._samples = self._flops = 0.0
        peak = chips.peak_flops(jax.devices()[0].device_kind)
        self._peak = peak and peak * jax.device_count()

    @property
    def wants_flops(self) -> bool:
        """Whether the peak of the devices is known."""
        return self._peak is not None

    def begin_stage(self) -> None:
        """Say that the next step is a stage's first."""
        self._first = True

    def resume(self) -> None:
        """Say that what was done since the last step is not part of the next one."""
        self._mark = time.monotonic()

    def step(self, samples: int, operations: float) -> None:
        """Say that a step is done."""
        now = time.monotonic()
        if not self._first:
            self.productive += now - self._mark
            self._steps += 1
            self._seconds += now - self._mark
            self._samples += samples
            self._flops += operations
        self._mark, self._first = now, False

    def write(self, metrics: Metrics, step: int, stage: str) -> None:
        """Record the figures of the steps since the last time, if there were any."""
        if not self._steps:
            return
        run = self._earlier + time.monotonic() - self._start
        values = {
            "step_seconds": self._seconds / self._steps,
            "samples_per_second": self._samples / self._seconds,
            "goodput": self.productive / run,
        }
        if self._peak is not None and self._flops:
            values["tflops_per_device"] = self._flops / self._seconds / jax.device_count() / 1e12
            values["mfu"] = self._flops / self._seconds / self._peak
        metrics.board(step, "speed", values)
        if jax.process_index() == 0:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, "stage": stage, **values, "run_seconds": run}) + "\n")
        self._steps = self._seconds = self._samples = self._flops = 0.0


class ModelFlops:
    """Operations that a train step needs for a batch, by the sizes of its images."""

    def __init__(self, config: TrainConfig, stage: StageConfig, rates: Mapping[str, float]):
        plain = programs.numerics(config, attention="xla", remat="none")
        (stage,) = (one for one in plain.stages if one.name == stage.name)
        self._step = make_train_step(precompute.check(plain), stage, rates, 0)
        self._loops = programs.rollout_steps(stage)
        self._known: dict[tuple, float] = {}

    def __call__(self, *arguments: object) -> float:
        """Count for (state, frozen, batch)."""
        sizes = tuple(np.shape(value) for value in arguments[-1].values())
        if sizes not in self._known:
            self._known[sizes] = flops.count(self._step, *arguments, loops=self._loops)
        return self._known[sizes]


def _seconds_before(path: pathlib.Path) -> float:
    """Give the seconds of earlier attempts, as far as they were written."""
    if not path.exists():
        return 0.0
    whole = [line for line in path.read_text().splitlines() if line.endswith("}")]
    return float(json.loads(whole[-1])["run_seconds"]) if whole else 0.0
