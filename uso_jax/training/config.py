# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The configuration of a training run: everything that `fit` needs, as frozen dataclasses.

Files in configs/ build a `TrainConfig`; `override` changes values of it by dotted path, as the command line does.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from uso_jax import params
from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.common.schema import override
from uso_jax.data.config import DataConfig
from uso_jax.data.sources import DRAWN
from uso_jax.data.triplet import TASK_CONDITIONS
from uso_jax.flow import Shift
from uso_jax.models.components import placement_rules
from uso_jax.models.uso_config import USOConfig
from uso_jax.training import rewards
from uso_jax.training.model_config import ModelConfig
from uso_jax.training.stage import RewardConfig, StageConfig

__all__ = [
    "CheckpointConfig",
    "EvaluationConfig",
    "GuardConfig",
    "HeldoutConfig",
    "ProfileConfig",
    "TableConfig",
    "TrainConfig",
    "override",
]


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written, and which are kept."""

    every: int = 500  # steps between checkpoints
    keep: int = 3  # number of latest checkpoints that are kept
    keep_every: int = 0  # steps of the run between checkpoints that are kept for good; 0: none


@dataclass(frozen=True)
class GuardConfig:
    """Fault-tolerance settings."""

    max_rollbacks: int = 0  # returns to the last checkpoint after a loss that is not finite, in the whole run
    watchdog_seconds: float = 0.0  # seconds without a step after which the program ends; 0: never

    def __post_init__(self):
        if self.max_rollbacks < 0 or self.watchdog_seconds < 0:
            raise ValueError("max_rollbacks and watchdog_seconds must not be negative")


@dataclass(frozen=True)
class ProfileConfig:
    """Which steps xprof traces, into WORKDIR/profile."""

    start: int = 0  # first step, counted over all stages from 1; 0: no profile
    steps: int = 3  # number of steps

    def __post_init__(self):
        if self.start < 0 or (self.start and self.steps < 1):
            raise ValueError(f"start {self.start} must not be negative, nor steps {self.steps} less than 1")


@dataclass(frozen=True)
class HeldoutConfig:
    """How a stage is validated, on triplets it never trains on."""

    num_batches: int = 4  # batches of a held-out loss
    batch_size: int = 16  # triplets in a batch
    every: int = 0  # steps between held-out losses; 0: only before and after a stage
    grid_every: int = 0  # steps between sample grids; 0: only after a stage
    grid_rows: int = 8  # rows of a sample grid
    num_steps: int = 25  # Euler steps of a sample
    guidance: float = 4.0  # guidance scale of samples
    shift: Shift = "upstream"  # time shift of samples


@dataclass(frozen=True)
class TableConfig:
    """One table of the evaluation."""

    task: str  # what is generated: subject, style or style_subject
    split: str = "heldout"  # split of the source

    def __post_init__(self):
        if self.task not in TASK_CONDITIONS or self.task == "text":
            raise ValueError(f"task {self.task!r} is unknown; use subject, style or style_subject")


@dataclass(frozen=True)
class EvaluationConfig:
    """The tables at the end of a run, for sources with ground truth (uso_jax.training.evaluation)."""

    tables: Mapping[str, TableConfig] = field(default_factory=lambda: {"main": TableConfig("style_subject")})
    """Tables by name; one is called main."""
    perceptual: bool = False  # also measure LPIPS and Gram distances: pip install "uso_jax[perceptual]"
    num_triplets: int = 128  # triplets in a table
    batch_size: int = 32  # triplets in a batch
    num_steps: int = 12  # Euler steps of a sample
    guidance: float = 3.0  # guidance scale of samples
    shift: Shift = "flux"  # time shift of samples

    def __post_init__(self):
        if "main" not in self.tables:
            raise ValueError(f"tables must have one called main; it has {', '.join(self.tables)}")


@dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    variant: str  # name of the configuration; the default --workdir is runs/VARIANT
    model: ModelConfig  # networks and weights
    data: DataConfig  # sources of triplets
    stages: Mapping[str, StageConfig]  # training stages by name
    run: tuple[str, ...]  # names of the stages to train, in order
    seed: int = 0  # seed of parameters, data order and noise
    mesh: Mapping[str, int] = field(default_factory=lambda: {"data": -1, "fsdp": 1, "sequence": 1, "tensor": 1})
    """Devices along each axis of the mesh; one axis may be -1, for all that remain."""
    placement: params.Rules = ()
    """Sharding rules that come before the networks' own: (regex over parameter paths, mesh axes of each dimension)."""
    log_placement: bool = False  # print the sharding of every parameter, and the rule that decided it
    checkpoint: CheckpointConfig = CheckpointConfig()  # checkpoints
    guard: GuardConfig = GuardConfig()  # fault-tolerance settings
    profile: ProfileConfig = ProfileConfig()  # profiling
    log_every: int = 10  # steps between logged metrics
    loggers: tuple[str, ...] = ("tensorboard",)
    """Programs that show curves and samples (uso_jax.training.loggers.LOGGERS); metrics.jsonl is always written."""
    project: str = "uso_jax"  # project of wandb or trackio that the run belongs to
    heldout: HeldoutConfig = HeldoutConfig()  # validation
    evaluation: EvaluationConfig | None = None  # tables at the end, where the source knows the truth; None: none

    @property
    def rules(self) -> params.Rules:
        """All sharding rules, in order; the first match wins."""
        return (*self.placement, *placement_rules())

    def __post_init__(self):
        if misnamed := [name for name, stage in self.stages.items() if stage.name != name]:
            raise ValueError(f"stages: {misnamed[0]!r} is the key of a stage named {self.stages[misnamed[0]].name!r}")

    @functools.cached_property
    def run_stages(self) -> tuple[StageConfig, ...]:
        """The stages of `run`, in order; a reward of scale 0 is none.

        Raises:
          InputError: `run` names an unknown stage.
        """
        for name in self.run:
            if name not in self.stages:
                raise InputError(f"config: run {name!r} is unknown; known are {', '.join(self.stages)}")
        stages = (self.stages[name] for name in self.run)
        return tuple(
            stage if stage.reward is None or stage.reward.scale else dataclasses.replace(stage, reward=None)
            for stage in stages
        )

    @functools.cached_property
    def system(self) -> USOConfig:
        """The networks, with those that rewards of this run read."""
        names = {name for stage in self.run_stages if stage.scored for name in stage.scored.names}
        return self.model.system(rewards.components(names))

    def style_size(self, stage: StageConfig) -> tuple[int, int]:
        """Return the (height, width) of a stage's style images: the style tower's, or without one the content's."""
        tower = self.system.siglip
        return stage.content_size if tower is None else (tower.image_size, tower.image_size)

    @property
    def evaluates(self) -> bool:
        """Whether the run ends with tables: they need a source that knows the truth."""
        return self.evaluation is not None and self.data.source in DRAWN

    def fingerprint(self) -> dict[str, Any]:
        """Return what a checkpoint must agree on to be resumed, as JSON: the networks, the stages and the data."""
        parts = {
            "seed": self.seed,
            "system": self.system.to_json(),
            "weights": self.model.weights,
            "fresh": self.model.fresh,
            "frozen_dtype": self.model.frozen_dtype,
            "data": self.data.asked(),
            "num_styles": self.data.num_styles,
            "stages": self.run_stages,
        }
        if self.model.quantization:  # checkpoints from before this setting lack it
            parts["quantization"] = self.model.quantization
        return untrusted.recorded(parts, default=dataclasses.asdict)

    def with_numerics(self, **changes: Any) -> "TrainConfig":
        """Change attention or remat of every network that has it; remat "none" includes the reward's decoder."""
        stages = dict(self.stages)
        if changes.get("remat") == "none":
            for name, stage in stages.items():
                if isinstance(stage.reward, RewardConfig):
                    reward = dataclasses.replace(stage.reward, remat_decoder=False)
                    stages[name] = dataclasses.replace(stage, reward=reward)
        return dataclasses.replace(self, model=_replaced(self.model, changes), stages=stages)


def _replaced(config: Any, changes: Mapping[str, Any]) -> Any:
    if isinstance(config, Mapping):
        return {name: _replaced(value, changes) for name, value in config.items()}
    if not dataclasses.is_dataclass(config):
        return config
    new = {part.name: _replaced(getattr(config, part.name), changes) for part in dataclasses.fields(config)}
    return dataclasses.replace(config, **new | {name: value for name, value in changes.items() if name in new})
