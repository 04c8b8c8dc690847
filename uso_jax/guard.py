# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a step's numbers are such that training can go on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from uso_jax.errors import InputError
from uso_jax.stage import StageConfig


@dataclass(frozen=True)
class GuardConfig:
    """What a run puts up with."""

    max_rollbacks: int  # returns to the last checkpoint after numbers that are not finite, in the whole run
    watchdog_seconds: float  # without a step, after which the program ends; 0: never

    def __post_init__(self):
        if self.max_rollbacks < 0 or self.watchdog_seconds < 0:
            raise ValueError("guard: max_rollbacks and watchdog_seconds must not be negative")


class NotFinite(Exception):
    """A step ended in numbers that no later step can use.

    `step` counts over all stages; `position` is the data's after the step's batch.
    """

    def __init__(self, stage: str, step: int, numbers: Mapping[str, float], position: dict):
        self.stage, self.step, self.position = stage, step, position
        self.sentence = (
            f"stage {stage!r} diverged at step {step}: loss {numbers['loss']}, norm of gradients"
            f" {numbers['grad_norm']}, of parameters {numbers['param_norm']}"
        )
        super().__init__(self.sentence)

    def give_up(self, last: int | None, rollbacks: int) -> InputError:
        """Give the error that ends the run, whose last checkpoint is of step `last`."""
        tried = f" after {rollbacks} roll-backs" if rollbacks else ""
        kept = "no checkpoint was written before" if last is None else f"the last good checkpoint is step {last}"
        return InputError(
            f"{self.sentence}{tried}; {kept}. Lower --config.stages.{self.stage}.learning_rate, with another --workdir,"
            " or check the data"
        )


def check(stage: StageConfig, step: int, numbers: dict[str, float], record: dict, position: dict) -> dict[str, float]:
    """Give the numbers to report of a step; `record` is the run's and keeps count of skipped rewards.

    Raises:
      NotFinite: loss, gradient or parameters are not finite.
      InputError: the reward was not finite too often in a row.
    """
    if stage.reward is not None:
        numbers = _count_skipped(stage, step, numbers, record)
    # The parameters' own norm counts too: a step may end in numbers no later step can use, though its loss was finite.
    if not all(map(math.isfinite, numbers.values())):
        raise NotFinite(stage.name, step, numbers, position)
    return numbers


def _count_skipped(stage: StageConfig, step: int, numbers: dict[str, float], record: dict) -> dict[str, float]:
    """Count steps that were skipped, stop the run after too many, and leave out figures that mean nothing."""
    begun = record["stages"][record["stage"]]
    skipped = numbers["reward_skipped"] > 0
    record["skipped_in_a_row"] = record.get("skipped_in_a_row", 0) + 1 if skipped else 0
    if skipped:
        begun["skipped"] = begun.get("skipped", 0) + 1
    if record["skipped_in_a_row"] >= stage.reward.max_skipped:
        raise InputError(
            f"stage {stage.name!r}: the reward ({', '.join(stage.reward.weights)}) or its gradient was not finite in"
            f" {record['skipped_in_a_row']} steps in a row, the last of them step {step};"
            " parameters are as they were before these steps. Check the reward's weights and the data"
        )
    rewarded = numbers["reward_active"] > 0 and not skipped
    of_reward = lambda key: key == "loss_reward" or key.startswith("reward_") or key == "reward"
    kept = {key: number for key, number in numbers.items() if rewarded or not of_reward(key)}
    return kept | {"reward_skipped": float(begun.get("skipped", 0))}
