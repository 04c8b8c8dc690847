# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Where a run continues: which checkpoint, whether it belongs to the run, and how its arrays are placed."""

import dataclasses
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import NamedSharding

from uso_jax.common import untrusted
from uso_jax.common.differences import first_differences
from uso_jax.common.errors import InputError
from uso_jax.data.config import SPLITS, DataConfig
from uso_jax.models.uso import USO
from uso_jax.training.checkpoints import Checkpoints, Damaged
from uso_jax.training.config import TrainConfig
from uso_jax.training.init import describe_params
from uso_jax.training.record import RunRecord
from uso_jax.training.stage import StageConfig
from uso_jax.training.step import TrainState, describe_state, state_shardings


def checkpoint_arrays(trained: set[str], state: TrainState, frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint holds of a stage: every parameter that any stage trains, and the optimizer's state.

    The average of the parameters, the anchor and the old policy are part of it where the stage has them.
    """
    params = {path: value for path, value in {**frozen, **state.params}.items() if path in trained}
    more = {name: value for name in ("anchor", "old") if (value := getattr(state, name))}
    return {"params": params, "opt_state": state.opt_state, "ema": state.ema} | more


@dataclass(frozen=True)
class Resume:
    """Finds the checkpoint from which a run continues; neither parameters nor a set mesh are needed."""

    config: TrainConfig
    system: USO
    shardings: Mapping[str, NamedSharding]
    trained: set[str]
    checkpoints: Checkpoints
    workdir: pathlib.Path

    def newest(self) -> tuple[int, RunRecord, dict | None] | None:
        """Return step, record and arrays of the newest checkpoint that can be read, or None without checkpoints.

        The arrays of a finished run are not read, so they are None.

        Raises:
          InputError: the checkpoint is of another configuration, or no checkpoint can be read.
        """
        found = self.checkpoints.newest(self._like)
        if found is None:
            return None
        step, record, arrays = found
        return step, RunRecord.from_json(record), arrays

    def _like(self, record: dict) -> dict | None:
        """Return shapes, dtypes and shardings of a checkpoint's arrays, or None if they need not be read."""
        try:
            position = RunRecord.from_json(record)
        except InputError as error:
            raise Damaged(str(error)) from error
        stages = position.config.get("stages")
        if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
            raise Damaged("its configuration has no stages")
        check_same_config(position.config, self.config.fingerprint(), self.workdir)
        if (
            not 0 <= position.stage < len(self.config.run_stages)
            or not 0 <= position.step <= self.config.run_stages[position.stage].steps
        ):
            raise Damaged(f"stage {position.stage}, step {position.step} is not one of this run")
        if position.is_finished(self.config.run_stages):
            return None
        stage = self.config.run_stages[position.stage]
        lr_multipliers = stage.lr_multipliers(self.system.shapes)
        trained = self.trained | position.inherited
        params = describe_params(self.config, self.system, self.shardings, trained)
        state = describe_state(stage, lr_multipliers, {path: params[path] for path in lr_multipliers})
        place = lambda struct, sharding: jax.ShapeDtypeStruct(struct.shape, struct.dtype, sharding=sharding)
        state = jax.tree.map(place, state, state_shardings(state, self.shardings))
        frozen = {path: struct for path, struct in params.items() if path not in lr_multipliers}
        return checkpoint_arrays(trained, state, frozen)


def _with_defaults(spec: Mapping) -> dict:
    """Return the description of a source with the options that it lacks."""
    parts = {"parts": [_with_defaults(part) for part in spec["parts"]]} if "parts" in spec else {}
    options = DataConfig().sections.get(spec.get("name"), {})
    return untrusted.recorded({name: value for name, value in options.items() if name not in SPLITS}) | {**spec} | parts


def check_same_config(saved: dict, wanted: dict, workdir: pathlib.Path) -> None:
    """Raise InputError if a run would continue under other settings; the message names the first ones that differ."""
    # A setting that did not exist when the checkpoint was saved had its default.
    defaults = untrusted.recorded(dataclasses.asdict(StageConfig("")))
    stages = [defaults | stage for stage in saved["stages"]]
    saved = saved | {"stages": stages, "data": _with_defaults(saved["data"])}
    if found := first_differences(saved, wanted):
        raise InputError(
            f"{workdir} holds checkpoints of another configuration ({found});"
            f" use the same settings to continue, or start a new run from its weights: --init_from {workdir}"
            " --workdir NEW"
        )
