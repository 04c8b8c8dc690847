# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The record of a run: its position, and what its stages have shown so far.

Every checkpoint stores it as JSON, and summary.json is made from it. Fields that are None are not written, so the keys
of a record depend on what the run has done.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from uso_jax.common import schema
from uso_jax.training.stage import StageConfig

Figures = dict[str, float]
"""Named numbers, such as accuracies."""

Tables = dict[str, dict[str, Figures]]
"""Table -> "before", "after" or a reference -> figures."""


@dataclass
class StageRecord:
    """What one stage has shown so far."""

    name: str
    steps: int
    heldout_loss_before: float
    reward: list[dict[str, Any]] | None = None  # figures of each validation of the reward, with their "step"
    skipped: int | None = None  # steps whose reward was not finite
    stopped: int | None = None  # step at which the stage ended early
    seconds: float | None = None
    heldout_loss_after: float | None = None
    evaluation: dict[str, Figures] | None = None  # by table


@dataclass
class RunRecord:
    """The position of a run and the records of its stages."""

    config: dict[str, Any]  # TrainConfig.fingerprint
    stage: int = 0  # index of the stage that is trained
    step: int = 0  # steps of that stage that are done
    data: dict[str, Any] | None = None  # position of that stage's data
    init_from: dict[str, Any] | None = None  # the run whose parameters it began with, see uso_jax.training.origin
    rows: dict[str, Any] | None = None  # fingerprints of the training data, by stage
    seconds: float = 0.0  # spent in that stage
    productive_seconds: float = 0.0  # spent in train steps, over all stages
    stages: list[StageRecord] = field(default_factory=list)  # of the stages that have begun
    evaluation: Tables | None = None
    skipped_in_a_row: int | None = None  # steps up to now whose reward was not finite
    rollbacks: list[dict[str, Any]] | None = None  # "stage" and "step" of each bad batch, and the step returned "to"

    @property
    def inherited(self) -> set[str]:
        """Parameters that the run took over from another one; checkpoints hold them even if no stage trains them."""
        return set((self.init_from or {}).get("parameters", ()))

    def begin_stage(self, index: int) -> None:
        """Move to the start of a stage."""
        self.stage, self.step, self.data, self.seconds = index, 0, None, 0.0

    def last_step(self, stage: StageConfig) -> int:
        """Return the step at which the current stage, which is `stage`, ends or has ended early."""
        stopped = self.stages[self.stage].stopped if self.stage < len(self.stages) else None
        return stage.steps if stopped is None else stopped

    def is_finished(self, stages: Sequence[StageConfig]) -> bool:
        """Return whether all stages of a run are done."""
        return self.stage == len(stages) - 1 and self.step == self.last_step(stages[-1])

    def summary(self, variant: str) -> dict[str, Any]:
        """Return what summary.json says of the run."""
        found = self.to_json()
        summary = {"variant": variant, "stages": found["stages"]}
        if "init_from" in found:
            summary["init_from"] = {name: found["init_from"][name] for name in ("workdir", "step")}
        if "rollbacks" in found:
            summary["rollbacks"] = found["rollbacks"]
        if "evaluation" in found:
            summary["evaluation"] = found["evaluation"].pop("main")
            summary["tables"] = found["evaluation"]
        return summary

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON terms that share nothing with it."""
        values = dataclasses.asdict(self)
        values["stages"] = [_without_none(stage) for stage in values["stages"]]
        return {name: value for name, value in values.items() if value is not None or name == "data"}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RunRecord":
        """Return the record that `to_json` gave.

        Raises:
          InputError: the values are those of no record.
        """
        return schema.converted(values, cls, "the record")


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
