# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""All checks before a run: every mistake that can be found without reading weights or data is found here.

`fit` calls `check` before it allocates anything. The planner, which needs neither weights nor data, calls the checks
that only concern the configuration. Every check raises an `InputError` that names the setting to change.
"""

import dataclasses
import glob
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

import uso_jax
from uso_jax import mini, weights
from uso_jax.common import extras
from uso_jax.common.errors import InputError
from uso_jax.data.features import FeatureSource, array_record
from uso_jax.data.storage import urls
from uso_jax.models.families import FAMILIES
from uso_jax.models.uso import USO
from uso_jax.parallel import sharding
from uso_jax.training import black_boxes, loggers, precompute, preference, rewards
from uso_jax.training.config import TrainConfig
from uso_jax.training.init import QUANTIZED, check_weights
from uso_jax.training.objectives import OBJECTIVES
from uso_jax.training.questions import QUESTIONS
from uso_jax.training.stage import CONDITIONS, StageConfig
from uso_jax.weights import pretrained, quantization
from uso_jax.weights.quantized_kernels import describe


def check(config: TrainConfig, mesh: Mesh, workdir: pathlib.Path) -> USO:
    """Return the system of a run that can start: its configuration, files and devices fit together.

    Raises:
      InputError: something is wrong; nothing but the empty `workdir` has been made.
    """
    check_workdir(workdir)
    check_settings(config)
    check_data(config)
    check_features(config)
    system = precompute.build_system(config)
    for check_part in checks_of_networks(config, mesh, system).values():
        check_part()
    return system


def checks_of_networks(config: TrainConfig, mesh: Mesh, system: USO) -> dict[str, Callable[[], None]]:
    """Return the checks that need the shapes of the networks, by what they examine, in their order."""

    def check_stored() -> None:
        trained = set().union(*(stage.lr_multipliers(system.shapes) for stage in config.run_stages))
        check_weights(config, system.shapes, trained)
        check_scorers(config)

    return {
        "mesh": lambda: check_mesh(config, mesh),
        "quantization": lambda: check_quantization(config, system),
        "placement": lambda: check_placement(config, mesh, system),
        "weights": check_stored,
    }


def facts(config: TrainConfig, workdir: pathlib.Path) -> dict[str, Any]:
    """Return what all processes of a run must have in common besides the data, as JSON terms."""
    settings = dataclasses.asdict(config)
    for name in ("num_threads", "num_workers"):  # hosts may differ in these
        settings["data"].pop(name)
    directory = mini.directory(config.model.weights) if config.model.weights else None
    stored = sorted(weights.components(directory)) if directory is not None else []
    return {
        "config": settings,
        "workdir": str(workdir.absolute()),
        "weights": {name: pretrained.fingerprint(directory / name) for name in stored},
        "versions": {"uso_jax": uso_jax.__version__, "jax": jax.__version__},
    }


def check_placement(config: TrainConfig, mesh: Mesh, system: USO) -> None:
    """Raise InputError if a parameter has no sharding rule, or a rule of `config.placement` matches no parameter."""
    sharding.shardings(mesh, config.rules, system.shapes)
    for regex, axes in config.placement:
        if not any(re.fullmatch(regex, path) for path in system.shapes):
            raise InputError(f"config.placement: {regex!r}, {axes} matches no parameter; correct or remove it")


def check_workdir(workdir: pathlib.Path) -> None:
    """Create the directory of a run, and raise InputError where that fails or nothing can be written."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot use --workdir {workdir}: {error.strerror}") from error
    if not can_write(workdir):
        raise InputError(f"cannot use --workdir {workdir}: it is not writable")


def can_write(workdir: pathlib.Path) -> bool:
    """Return whether files can be created in a directory; one that does not exist yet counts."""
    return not workdir.is_dir() or os.access(workdir, os.W_OK | os.X_OK)


# ---------------------------------------------------------------------------------------------------- configuration


def check_settings(config: TrainConfig) -> None:
    """Raise InputError for names that are unknown and for values that do not fit each other."""
    check_values(config)
    check_stages(config)
    loggers.check(config.loggers)


def check_values(config: TrainConfig) -> None:
    """Raise InputError for an unknown source, stage or format, and for sizes that do not fit the networks."""
    if (mode := config.model.quantization) and mode not in quantization.FORMATS:
        raise InputError(f"config: model.quantization {mode!r} is unknown; known are {', '.join(quantization.FORMATS)}")
    if mode and not config.model.weights:
        raise InputError(f"config: model.quantization {mode!r} is of weights; name them in model.weights")
    config.data.check()
    for stage in config.run_stages:
        stage.check_sizes(config.system.pixels_per_token)


def check_stages(config: TrainConfig) -> None:
    """Raise InputError for losses and rewards that do not exist or that the stage or the networks cannot serve."""
    for stage in config.run_stages:
        if stage.loss not in OBJECTIVES:
            raise InputError(f"stage {stage.name!r}: unknown loss {stage.loss!r}; known are {', '.join(OBJECTIVES)}")
        if "style" in stage.conditions and config.system.siglip is None and config.system.style_encoder == "siglip":
            raise InputError(
                f"stage {stage.name!r} has style images but no style tower: set config.model.siglip, or"
                " config.model.style_encoder to autoencoder"
            )
        if stage.loss != "flow_matching" and config.data.prior.path and config.data.prior.loss_weight != 1:
            raise InputError(
                f"stage {stage.name!r}: data.prior.loss_weight is for the loss 'flow_matching', not {stage.loss!r}"
            )
        if stage.scored is not None:
            _check_scores(config, stage)


def _check_scores(config: TrainConfig, stage: StageConfig) -> None:
    where = f"stage {stage.name!r}, {'reward' if stage.policy is None else 'policy'}"
    rewards.check_names(stage.scored.names, where)
    for name in stage.scored.names:
        if missing := set(rewards.get(name).needs) & set(CONDITIONS) - set(stage.conditions):
            raise InputError(f"{where}: {name} needs the {' and '.join(missing)} condition, which the stage lacks")
        if missing := set(rewards.get(name).tokens) - config.system.token_counts().keys():
            raise InputError(f"{where}: {name} reads {' and '.join(missing)}, which this base model does not have")
    if lacks := sorted(name for name in rewards.components(stage.scored.names) if not config.system.has(name)):
        raise InputError(f"{where}: needs {', '.join(lacks)}, but config.model.rewards has no sizes of it")
    if stage.scored.patience and not config.heldout.grid_every:
        raise InputError(f"{where}: patience needs images to judge; set config.heldout.grid_every")
    if stage.policy is not None:
        _check_policy(config, stage, where)


def _check_policy(config: TrainConfig, stage: StageConfig, where: str) -> None:
    policy, system = stage.policy, config.system
    two_passes = FAMILIES[system.family].classifier_free and not system.transformer.guidance_embed
    if policy.method == "grpo" and two_passes and policy.guidance != 1:
        raise InputError(
            f"{where}: this base model is guided by a second pass, whose densities grpo does not know: set"
            f" --config.stages.{stage.name}.policy.guidance=1"
        )
    if policy.black_boxes and (config.data.encode_first or precompute.is_ready(config.data.train)):
        raise InputError(
            f"{where}: {next(iter(policy.black_boxes))} reads images and prompts, which features do not hold: set"
            " --config.data.source to the images and --config.data.encode_first=False"
        )
    for name in policy.black_boxes:
        if not black_boxes.is_known(name):
            known = ", ".join((*black_boxes.BLACK_BOXES, *QUESTIONS, f"{black_boxes.COMMAND}PROGRAM"))
            raise InputError(f"{where}: unknown black box {name!r}; known are {known}")
        if name in QUESTIONS and not policy.vlm.model:
            raise InputError(
                f"{where}: {name} asks a model: set --config.stages.{stage.name}.policy.vlm.model and .base_url"
            )
        if name in QUESTIONS:
            extras.require("eval")


def check_scorers(config: TrainConfig) -> None:
    """Raise InputError if a scorer of preferences was fitted with other networks than the run loads."""
    if not config.model.weights:
        return
    directory = mini.directory(config.model.weights)
    stored = set(weights.components(directory)) - set(config.model.fresh)
    names = {name for stage in config.run_stages if stage.scored is not None for name in stage.scored.names}
    for name in sorted(names):
        if name.startswith(rewards.PREFERENCE):
            preference.check_networks(name.removeprefix(rewards.PREFERENCE), directory, stored)


def check_mesh(config: TrainConfig, mesh: Mesh) -> None:
    """Raise InputError if the attention heads or a batch do not divide over the devices that split them."""
    sharding.check_heads(mesh, config.system.transformer.num_heads)
    for stage in config.run_stages:
        micro = stage.batch_size // stage.accumulate
        if (policy := stage.policy) is not None and policy.sample_batch:
            check_batch(
                f"config.stages.{stage.name}.policy.sample_batch is {policy.sample_batch}, which",
                policy.sample_batch,
                mesh,
            )
        check_batch(f"config.stages.{stage.name}.batch_size / accumulate is {micro}, which", micro, mesh)
    heldout = config.heldout.batch_size
    check_batch(f"config.heldout.batch_size is {heldout}, which", heldout, mesh)


def check_batch(subject: str, size: int, mesh: Mesh) -> None:
    """Raise InputError if a batch does not divide over the devices that split it; `subject` begins the message."""
    data_shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if size % data_shards:
        raise InputError(f"{subject} does not divide over {data_shards} (data x fsdp) devices")


def check_quantization(config: TrainConfig, system: USO) -> None:
    """Raise InputError if a stage trains kernels that are stored quantised."""
    shapes = {path: jax.ShapeDtypeStruct(shape.shape, shape.dtype) for path, shape in system.shapes.items()}
    mode = config.model.quantization
    stored = describe(shapes, mode, QUANTIZED)
    for stage in config.run_stages:
        trained = stage.lr_multipliers(system.shapes)
        if quantized := [path for path in trained if quantization.scale_path(path) in stored]:
            raise InputError(
                f"stage {stage.name!r} trains {quantized[0]}, which --config.model.quantization={mode}"
                " stores in too few bits to learn: set it to '', or train lora and projector only"
            )


# ---------------------------------------------------------------------------------------------------- files


def check_data(config: TrainConfig) -> None:
    """Raise InputError if a local path of a data source does not exist; URLs are first read when training starts."""
    prior = config.data.prior.path
    if prior and not urls.is_url(prior) and not _exists(prior):
        raise InputError(f"{prior} does not exist: correct --config.data.prior.path, the regularisation images")
    for split, spec in (("train", config.data.train), ("heldout", config.data.heldout)):
        for part in _sources(spec):
            path, flag = str(part.get("path", "")), f"--config.data.{part['name']}.{split}.path"
            if path and not urls.is_url(path) and not _exists(path):
                raise InputError(f"{path} does not exist: correct {flag}, the path of the {split} data")
    samples = config.data.samples
    if samples and not urls.is_url(samples) and not os.path.isfile(samples):
        raise InputError(f"{samples} does not exist: correct --config.data.samples, the list of images to draw")


def _exists(path: str) -> bool:
    return glob.has_magic(path) or any(os.path.exists(path + ending) for ending in ("", ".tar", ".zip"))


def check_features(config: TrainConfig) -> None:
    """Raise InputError if encoded data is of other encoders, or if a stage needs what it does not hold."""
    specs = [spec for spec in (config.data.train, config.data.heldout) if precompute.is_ready(spec)]
    if not specs and not config.data.encode_first:
        return
    array_record()
    if specs and config.data.encode_first and not config.data.encoded:
        raise InputError("the data is encoded already: set --config.data.encode_first=False.")
    rewarded = precompute.reward_names(config)
    wanted = precompute.fingerprint(config, rewarded)
    entry = "style_features" if config.system.style_encoder == "siglip" else "style_moments"
    for part in (part for spec in specs for part in _sources(spec) if part["name"] == "features"):
        source = FeatureSource(part["path"])
        if source.style_entry != entry:
            raise InputError(
                f"{source.path} holds {source.style_entry}, but config.model.style_encoder is"
                f" {config.system.style_encoder!r}; set it to the other one, or make the features again."
            )
        made = source.manifest["fingerprint"]
        if lacking := sorted(set(rewarded) - set(source.manifest.get("rewards", ()))):
            raise InputError(
                f"{source.path} does not hold what {', '.join(lacking)} of a reward reads of the references: make it"
                " with --rewards, or set the stage's reward.scale to 0."
            )
        masked = [stage.name for stage in config.run_stages if stage.outside_mask < 1]
        if masked and not source.manifest.get("masks"):
            raise InputError(
                f"{source.path} holds no masks, which stage {masked[0]!r} reads: set its outside_mask to 1, or make the"
                " features again for this stage."
            )
        if differs := [name for name in wanted if made.get(name) != wanted[name]]:
            raise InputError(
                f"{source.path} was made by another {' and '.join(differs)} than this run has: use the same"
                " --config.model settings, or make the features again."
            )
    parameters = USO(config.system).shapes
    sizes = {str(stage.bucket_sizes(config.system.pixels_per_token)) for stage in config.run_stages}
    if config.data.encode_first and len(sizes) > 1:
        raise InputError(
            "the run's stages have several image sizes, but images are encoded at one: set equal sizes, or"
            " --config.data.encode_first=False."
        )
    for stage in config.run_stages:
        _check_stage_of_features(stage, parameters)


def _check_stage_of_features(stage: StageConfig, parameters: Iterable[str]) -> None:
    if stage.loss not in ("flow_matching", "words", "distillation"):
        raise InputError(
            f"stage {stage.name!r} needs the images themselves, which features do not hold: set"
            " --config.data.source to the images, or leave the stage out of --config.run."
        )
    if stage.clip_cut:
        raise InputError(f"stage {stage.name!r} cuts captions, which features hold encoded: set its clip_cut to 0.")
    trained = {path.split("/")[0] for path in stage.lr_multipliers(parameters)}
    if encoders := sorted(trained & set(precompute.STRUCTURES)):
        raise InputError(f"stage {stage.name!r} trains {', '.join(encoders)}, so it cannot read its features.")


def _sources(spec: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the sources of a data configuration: itself, or the parts of a mixture."""
    for part in spec.get("parts", ()):
        yield from _sources(part)
    if "parts" not in spec:
        yield spec
