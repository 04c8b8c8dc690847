# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Where a run's time goes: profiles of a few steps, speeds of all steps, and the operations that a step needs.

`ProfileWindow` writes a trace for TensorBoard's profile plug-in or xprof. `Speed` measures every attempt of a run and
writes a line to speed.jsonl every `log_every` steps:

    step_seconds        mean time of a train step, without compilation, validation and saving
    samples_per_second  over all devices
    goodput             productive time / time of all attempts; productive time led to steps that were kept
    tflops_per_device   operations that the model needs (`ModelFlops`), not those that rematerialisation repeats
    mfu                 the same as a share of the devices' peak; both only where the peak is known
    run_seconds         time of all attempts
"""

import pathlib
import time
from collections.abc import Mapping
from typing import TypedDict

import jax
import numpy as np

from uso_jax.hardware import chips, flops
from uso_jax.training import log_file, precompute
from uso_jax.training.config import ProfileConfig, TrainConfig
from uso_jax.training.metric_writer import Metrics
from uso_jax.training.stage import StageConfig
from uso_jax.training.step import make_train_step


class ProfileWindow:
    """Records a trace of the steps that the configuration names; each process writes its own file."""

    def __init__(self, config: ProfileConfig, directory: pathlib.Path):
        self._config, self._directory, self._running = config, directory, False

    def before(self, step: int) -> None:
        """Start the trace before the window's first global step, or inside the window where a run resumes there."""
        config = self._config
        if config.start and not self._running and config.start <= step < config.start + config.steps:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, step: int, results: object) -> None:
        """End the trace after the window's last step, when the devices have computed its results."""
        if self._running and step >= self._config.start + self._config.steps - 1:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """End a trace that the run leaves open."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False


FILE = "speed.jsonl"


class _Line(TypedDict):
    run_seconds: float


class Speed:
    """The clock of one attempt of a run.

    Attributes:
      productive: seconds of train steps over all attempts, as the run's record keeps them.
    """

    def __init__(self, workdir: pathlib.Path, productive: float):
        self.productive, self._path = productive, workdir / FILE
        earlier = log_file.reopen(self._path, _Line) if jax.process_index() == 0 else []
        self._start, self._earlier = time.monotonic(), float(earlier[-1]["run_seconds"]) if earlier else 0.0
        self._mark, self._first = self._start, True
        self._steps = self._seconds = self._samples = self._flops = 0.0
        peak = chips.peak_flops(jax.devices()[0].device_kind)
        self._peak = peak and peak * jax.device_count()

    @property
    def wants_flops(self) -> bool:
        """Whether `step` needs the number of operations: the peak of the devices is known."""
        return self._peak is not None

    def begin_stage(self) -> None:
        """Leave the next step out, as it is a stage's first: most of it is compilation."""
        self._first = True

    def resume(self) -> None:
        """Start the next step's time now, after validation or saving."""
        self._mark = time.monotonic()

    def step(self, samples: int, operations: float) -> None:
        """Count a step that is done, with its samples and its operations."""
        now = time.monotonic()
        if not self._first:
            self.productive += now - self._mark
            self._steps += 1
            self._seconds += now - self._mark
            self._samples += samples
            self._flops += operations
        self._mark, self._first = now, False

    def write(self, metrics: Metrics, step: int, stage: str) -> None:
        """Write the means over the steps since the last call, if there were any."""
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
            log_file.append(self._path, {"step": step, "stage": stage, **values, "run_seconds": run})
        self._steps = self._seconds = self._samples = self._flops = 0.0


class ModelFlops:
    """Counts the operations that a train step needs for a batch; they depend on the sizes of its images."""

    def __init__(self, config: TrainConfig, stage: StageConfig, lr_multipliers: Mapping[str, float]):
        plain = config.with_numerics(attention="xla", remat="none")
        (stage,) = (one for one in plain.run_stages if one.name == stage.name)
        self._step = make_train_step(precompute.build_system(plain), stage, lr_multipliers, 0)
        self._loops = stage.rollout_steps
        self._known: dict[tuple, float] = {}

    def __call__(self, *arguments: object) -> float:
        """Return the operations of a step with these arguments: (state, frozen, batch)."""
        sizes = tuple(np.shape(value) for value in arguments[-1].values())
        if sizes not in self._known:
            self._known[sizes] = flops.count_flops(self._step, *arguments, loops=self._loops)
        return self._known[sizes]
