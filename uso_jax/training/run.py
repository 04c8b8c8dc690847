# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What all stages of one run share."""

import pathlib
from dataclasses import dataclass, field
from typing import NoReturn

from jax.sharding import Mesh, NamedSharding

from uso_jax.common.locks import Lock
from uso_jax.models.uso import USO
from uso_jax.params import Params
from uso_jax.training.checkpoints import Checkpoints
from uso_jax.training.config import TrainConfig
from uso_jax.training.evaluation import Evaluation
from uso_jax.training.fault_tolerance import Stopped, StopRequest, Watchdog
from uso_jax.training.metric_writer import Metrics
from uso_jax.training.profiling import ProfileWindow, Speed
from uso_jax.training.record import RunRecord
from uso_jax.training.resume import checkpoint_arrays
from uso_jax.training.run_data import RunData
from uso_jax.training.step import TrainState


@dataclass
class Run:
    """The configuration, the devices, the outputs and the record of one `fit`."""

    config: TrainConfig
    system: USO
    mesh: Mesh
    shardings: dict[str, NamedSharding]  # by parameter path
    trained: set[str]  # parameters that any stage trains: float32, and in every checkpoint
    workdir: pathlib.Path
    lock: Lock | None  # of the workdir; None in processes other than the first
    checkpoints: Checkpoints
    metrics: Metrics
    speed: Speed
    watchdog: Watchdog
    stop: StopRequest
    profile: ProfileWindow
    data: RunData
    record: RunRecord  # what the next checkpoint stores
    evaluation: Evaluation | None = None
    positions: dict[int, dict] = field(default_factory=dict)  # of the data, by stage, after a roll-back to before it

    def first_step(self, index: int) -> int:
        """Return the global step at which a stage starts."""
        return sum(stage.steps for stage in self.config.run_stages[:index])

    def save(self, state: TrainState, frozen: Params) -> None:
        """Begin to write a checkpoint of the current stage."""
        step = self.first_step(self.record.stage) + self.record.step
        self.record.productive_seconds = self.speed.productive
        self.checkpoints.save(step, checkpoint_arrays(self.trained, state, frozen), self.record.to_json())

    def end(self) -> NoReturn:
        """End the program after the save in progress, as it was asked to.

        Raises:
          Stopped: always.
        """
        self.checkpoints.wait()
        sentence = f"stopped as asked; the same command continues from step {self.checkpoints.latest() or 0}"
        raise Stopped(sentence, self.stop.code)
