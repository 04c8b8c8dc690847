# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint of a run holds, and whether a run may continue from it.

The record is JSON: the configuration's fingerprint, the stage and its step, the data position, seconds, what the stages
begun so far have shown, and roll-backs.
"""

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

import jax
from jax.sharding import NamedSharding

from uso_jax.common.errors import InputError
from uso_jax.models.uso import USO
from uso_jax.training.checkpoints import Checkpoints
from uso_jax.training.config import TrainConfig
from uso_jax.training.init import describe_params
from uso_jax.training.stage import StageConfig
from uso_jax.training.step import TrainState, describe_state, state_shardings


def fresh_record(config: TrainConfig) -> dict:
    """Give the record of a run that has not begun."""
    nothing = {"stage": 0, "step": 0, "data": None, "seconds": 0.0, "productive_seconds": 0.0, "stages": []}
    return {"config": config.fingerprint()} | nothing


def last_step(stage: StageConfig, record: dict) -> int:
    """Give the step at which the stage that `record` is in ends, or ended early."""
    stages = record["stages"]
    begun = stages[record["stage"]] if record["stage"] < len(stages) else {}
    return begun.get("stopped", stage.steps)


def is_finished(config: TrainConfig, record: dict) -> bool:
    """Tell whether a run has done all its stages."""
    return record["stage"] == len(config.stages) - 1 and record["step"] == last_step(config.stages[-1], record)


def arrays(trained: set[str], state: TrainState, frozen: Mapping[str, object]) -> dict:
    """Give what a checkpoint holds of a stage's state: every parameter that any stage trains, and what goes with it."""
    params = {path: value for path, value in {**frozen, **state.params}.items() if path in trained}
    anchor = {"anchor": state.anchor} if state.anchor else {}
    return {"params": params, "opt_state": state.opt_state, "ema": state.ema} | anchor


@dataclass(frozen=True)
class Resume:
    """Finds where a run continues; parameters and mesh need not be there yet."""

    config: TrainConfig
    system: USO
    where: Mapping[str, NamedSharding]
    trained: set[str]
    checkpoints: Checkpoints
    workdir: pathlib.Path

    def newest(self) -> tuple[int, dict, dict | None] | None:
        """Give step, record and arrays of the newest checkpoint that can be read; of a finished run, no arrays.

        Raises:
          InputError: it is of another configuration, or none can be read.
        """
        return self.checkpoints.newest(self._like)

    def _like(self, record: dict) -> dict | None:
        _check_same_config(record["config"], self.config.fingerprint(), self.workdir)
        if is_finished(self.config, record):
            return None
        stage = self.config.stages[record["stage"]]
        rates = stage.lr_multipliers(self.system.shapes)
        params = describe_params(self.config, self.system, self.where, self.trained)
        state = describe_state(stage, rates, {path: params[path] for path in rates})
        place = lambda struct, sharding: jax.ShapeDtypeStruct(struct.shape, struct.dtype, sharding=sharding)
        state = jax.tree.map(place, state, state_shardings(state, self.where))
        return arrays(self.trained, state, {path: struct for path, struct in params.items() if path not in rates})


def _check_same_config(saved: dict, wanted: dict, workdir: pathlib.Path) -> None:
    """Refuse to continue a run under other settings; name the first ones that differ."""

    def differences(a, b, path):
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted(a.keys() | b.keys()):
                yield from differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                yield from differences(x, y, f"{path}[{i}]")
        elif a != b:
            yield f"{path} was {a!r}, is {b!r}"

    if found := list(differences(saved, wanted, "")):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise InputError(
            f"{workdir} holds checkpoints of another configuration ({'; '.join(found[:3])}{more});"
            " choose another --workdir, or the same settings to continue"
        )
