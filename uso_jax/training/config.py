# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From a ConfigDict at the edge to frozen, validated dataclasses inside."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from uso_jax import params
from uso_jax.common.errors import InputError
from uso_jax.data.triplet import TASK_CONDITIONS
from uso_jax.flow import Shift
from uso_jax.models.autoencoder import AutoEncoderConfig
from uso_jax.models.clip import ClipTextConfig
from uso_jax.models.components import COMPONENTS, placement_rules
from uso_jax.models.flux import FluxConfig
from uso_jax.models.projector import ProjectorConfig
from uso_jax.models.siglip import SiglipConfig
from uso_jax.models.t5 import T5Config
from uso_jax.models.text import T5ClipConfig
from uso_jax.models.uso_config import USOConfig
from uso_jax.training import rewards
from uso_jax.training.stage import RewardConfig, StageConfig
from uso_jax.weights import manifest_configs
from uso_jax.weights import quantization as quantize

LEARNED = {"csd": "csd_style", "text_score": "siglip_text"}  # figure -> reward
JUDGES = {*rewards.components(LEARNED.values()), "judge"}  # the weights components that are read


@dataclass(frozen=True)
class GuardConfig:
    """What a run puts up with."""

    max_rollbacks: int  # returns to the last checkpoint after numbers that are not finite, in the whole run
    watchdog_seconds: float  # without a step, after which the program ends; 0: never

    def __post_init__(self):
        if self.max_rollbacks < 0 or self.watchdog_seconds < 0:
            raise ValueError("guard: max_rollbacks and watchdog_seconds must not be negative")


@dataclass(frozen=True)
class ProfileConfig:
    """Which steps to profile."""

    start: int  # the first, counted over all stages from 1; 0: none
    steps: int

    def __post_init__(self):
        if self.start < 0 or (self.start and self.steps < 1):
            raise ValueError(f"profile: start {self.start} must not be negative, nor steps {self.steps} less than 1")


@dataclass(frozen=True)
class DataConfig:
    """Sources of training and held-out triplets (see uso_jax.data.loader.open_source) and how they are read."""

    train: Mapping[str, Any]
    heldout: Mapping[str, Any]
    num_styles: int
    num_threads: int
    num_workers: int = 0
    max_errors: int = 0


@dataclass(frozen=True)
class HeldoutConfig:
    """How a stage is judged on triplets it never trains on."""

    num_batches: int
    batch_size: int
    every: int  # steps between held-out losses; 0: only before and after a stage
    grid_every: int  # steps between sample grids; 0: only after a stage
    grid_rows: int
    num_steps: int  # Euler steps of a sample
    guidance: float
    shift: Shift


@dataclass(frozen=True)
class TableConfig:
    """What a table of the evaluation is about."""

    task: str  # subject, style or style_subject
    split: str  # of the source

    def __post_init__(self):
        if self.task not in TASK_CONDITIONS or self.task == "text":
            raise ValueError(f"evaluation: task {self.task!r} is unknown; use subject, style or style_subject")


@dataclass(frozen=True)
class EvaluationConfig:
    """The tables that a run ends with where the source knows the truth (uso_jax.training.evaluation)."""

    tables: Mapping[str, TableConfig]  # one is called "main"
    perceptual: bool  # also LPIPS and Gram distances, which need an extra package
    num_triplets: int  # a table
    batch_size: int
    num_steps: int  # Euler steps of a sample
    guidance: float
    shift: Shift


@dataclass(frozen=True)
class TrainConfig:
    """Everything `fit` needs."""

    variant: str
    seed: int
    system: USOConfig
    frozen_dtype: str  # of parameters that no stage trains
    quantization: str  # of frozen kernels, one of quantize.MODES; "": none
    weights: str  # weights directory; "" starts from random numbers
    fresh: tuple[str, ...]  # components that start from random numbers though the directory has them
    data: DataConfig
    stages: tuple[StageConfig, ...]
    mesh: Mapping[str, int]
    rules: params.Rules
    checkpoint_every: int
    checkpoint_keep: int  # the last so many
    checkpoint_keep_every: int  # and each of a multiple of so many steps of the run; 0: none
    guard: GuardConfig
    profile: ProfileConfig
    log_every: int
    heldout: HeldoutConfig
    evaluation: EvaluationConfig | None = None  # only of sources that know the truth

    def fingerprint(self) -> dict:
        """Give what a checkpoint must agree on to be continued, as JSON: the networks, the stages and the data."""
        parts = {
            "seed": self.seed,
            "system": self.system.to_json(),
            "weights": self.weights,
            "fresh": self.fresh,
            "frozen_dtype": self.frozen_dtype,
            "data": self.data.train,
            "num_styles": self.data.num_styles,
            "stages": self.stages,
        }
        if self.quantization:  # runs without it go on from checkpoints of before it was there
            parts["quantization"] = self.quantization
        return json.loads(json.dumps(parts, default=dataclasses.asdict))


def from_config_dict(config: ConfigDict) -> TrainConfig:
    """Build and validate the configuration.

    Raises:
      InputError: a value makes no sense; the message names it.
    """
    model = config.model.to_dict()
    _check_known("data.source", [config.data.source], [k for k, v in config.data.items() if isinstance(v, ConfigDict)])
    _check_known("run", config.run, list(config.stages))
    if mode := model["quantization"]:
        _check_known("model.quantization", [mode], list(quantize.FORMATS))
        if not model["weights"]:
            raise InputError(f"config: model.quantization {mode!r} is of weights; name them in model.weights")
    try:
        stages = tuple(_stage(name, config.stages[name].to_dict()) for name in config.run)
        system = USOConfig(
            transformer=_flux(model["transformer"]),
            autoencoder=AutoEncoderConfig(**_tuples(model["autoencoder"])),
            siglip=SiglipConfig(**model["siglip"]),
            text=_text(**model["text"]),
            patch=model["patch"],
            reference_offset=model["reference_offset"],
            style_encoder=model["style_encoder"],
            networks=_networks(model, stages),
        )
        for stage in stages:
            stage.check_sizes(system.pixels_per_token)
        evaluation = _evaluation(**config.evaluation.to_dict()) if _evaluates(config) else None
        source = _sources(config.data.source, config.data.to_dict())
        guard, profile = GuardConfig(**config.guard), ProfileConfig(**config.profile)
    except KeyError as error:
        raise InputError(f"config: {error.args[0]}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"config: {error}") from error
    return TrainConfig(
        variant=config.variant,
        seed=config.seed,
        system=system,
        frozen_dtype=config.model.frozen_dtype,
        quantization=config.model.quantization,
        weights=config.model.weights,
        fresh=tuple(config.model.fresh),
        data=DataConfig(
            **source,
            **{name: config.data[name] for name in ("num_styles", "num_threads", "num_workers", "max_errors")},
        ),
        stages=stages,
        mesh=config.mesh.to_dict(),
        rules=placement_rules(),
        checkpoint_every=config.checkpoint.every,
        checkpoint_keep=config.checkpoint.keep,
        checkpoint_keep_every=config.checkpoint.keep_every,
        guard=guard,
        profile=profile,
        log_every=config.log_every,
        heldout=HeldoutConfig(**config.heldout.to_dict()),
        evaluation=evaluation,
    )


def _evaluates(config: ConfigDict) -> bool:
    return "evaluation" in config and config.data.source in ("procedural", "emoji")


def _evaluation(tables: dict, **values) -> EvaluationConfig:
    if "main" not in tables:  # a ConfigDict does not keep the order, so it must be named
        raise ValueError(f"evaluation.tables must have one called main; it has {', '.join(tables)}")
    return EvaluationConfig(tables={name: TableConfig(**table) for name, table in tables.items()}, **values)


def _check_known(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"config: {what} {name!r} is unknown; known are {', '.join(known)}")


def _sources(section: str, data: dict) -> dict[str, dict]:
    """Give the arguments of the training and the held-out source: what they share, then what is their own.

    A section may say in `kind` which source it is for, so that there can be two of one kind.
    """
    if section == "mixture":
        weights = {name: weight for name, weight in data["mixture"]["weights"].items() if weight}
        _check_known("data.mixture.weights", list(weights), [name for name in data if name != "mixture"])
        parts = [_sources(name, data) for name in weights]
        give = lambda split: [part[split] | {"weight": w} for part, w in zip(parts, weights.values(), strict=True)]
        return {split: {"name": "mixture", "parts": give(split)} for split in ("train", "heldout")}
    arguments = dict(data[section])
    own = {split: arguments.pop(split) for split in ("train", "heldout")}
    name = arguments.pop("kind", section)
    return {split: {"name": name} | arguments | values for split, values in own.items()}


def _flux(sizes: dict) -> FluxConfig:
    sizes = _tuples(sizes)
    projector = sizes["projector"] and ProjectorConfig(**_tuples(sizes["projector"]))
    return FluxConfig(**(sizes | {"projector": projector}))


def _stage(name: str, values: dict) -> StageConfig:
    values = _tuples(values)
    reward = values["reward"] and RewardConfig(**_tuples(values["reward"]))
    if reward and not reward.scale:  # what a command line can say in place of None
        reward = None
    return StageConfig(name=name, **values | {"reward": reward})


def _networks(model: dict, stages: Sequence[StageConfig]) -> dict[str, Any]:
    """Return further networks: those with their own section, and those of `rewards` that a stage of the run reads."""
    core = ("flux", "autoencoder", "siglip", "t5", "clip")
    own = {
        name: COMPONENTS[name].config(**_tuples(model[name]))
        for name in COMPONENTS
        if name in model and name not in core
    }
    needed = set().union(*(rewards.components(s.reward.names) for s in stages if s.reward is not None))
    sections = {name: _tuples(values) for name, values in model["rewards"].items()}
    asked = [row for row in COMPONENTS.values() if row.name in needed and row.fields().keys() <= sections.keys()]
    return own | {row.name: manifest_configs.build(row.name, sections) for row in asked}


def _text(t5: dict, clip: dict, **values) -> T5ClipConfig:
    return T5ClipConfig(t5=T5Config(**t5), clip=ClipTextConfig(**clip), **values)


def _tuples(values: dict) -> dict:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def numerics(config: TrainConfig, **changes: Any) -> TrainConfig:
    """Change attention or remat of every network that has it; remat "none" includes the reward's decoder."""
    parts: dict[str, Any] = {}
    for part in dataclasses.fields(USOConfig):
        parts[part.name] = _replace(getattr(config.system, part.name), changes)
    stages = config.stages
    if changes.get("remat") == "none":
        plain = lambda reward: reward and dataclasses.replace(reward, remat_decoder=False)
        stages = tuple(dataclasses.replace(stage, reward=plain(stage.reward)) for stage in stages)
    return dataclasses.replace(config, system=USOConfig(**parts), stages=stages)


def _replace(config: Any, changes: Mapping[str, Any]) -> Any:
    if isinstance(config, Mapping):
        return {name: _replace(value, changes) for name, value in config.items()}
    if not dataclasses.is_dataclass(config):
        return config
    known = {part.name: getattr(config, part.name) for part in dataclasses.fields(config)}
    inner = {name: _replace(value, changes) for name, value in known.items() if dataclasses.is_dataclass(value)}
    return dataclasses.replace(config, **inner | {name: value for name, value in changes.items() if name in known})


def rollout_steps(stage: StageConfig) -> float:
    """Give how many steps without a gradient the roll-out of a stage's reward has on average; 1 without a reward."""
    reward = stage.reward
    return 1.0 if reward is None else reward.num_steps - (reward.first + reward.last) / 2 - reward.gradient_steps + 1
