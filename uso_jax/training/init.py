# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The parameters a run starts from: converted weights where there are some, fresh numbers elsewhere."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Key

from uso_jax import mini, weights
from uso_jax.common import progress
from uso_jax.common.errors import InputError
from uso_jax.models.components import COMPONENTS, by_component, folders
from uso_jax.models.uso import USO
from uso_jax.params import ModelDef, Params
from uso_jax.training import rewards
from uso_jax.training.config import TrainConfig
from uso_jax.training.objectives import OBJECTIVES
from uso_jax.weights import quantization
from uso_jax.weights.missing import missing_components
from uso_jax.weights.quantized_kernels import describe


def initial_params(
    config: TrainConfig, system: USO, shardings: Mapping[str, NamedSharding], trained: set[str]
) -> Params:
    """Load or draw every parameter, with its sharding.

    Parameters that a stage trains or that only rewards read are float32; the others have the frozen dtype. Quantised
    kernels of the weights directory become numbers and scales (uso_jax.weights.quantized_kernels).

    Raises:
      InputError: the weights directory lacks a component that no stage trains, or a reward would be random.
    """
    check_weights(config, system.shapes, trained)
    structs = _describe_whole(config, system, shardings, trained)
    params: Params = _load(config, structs) if config.model.weights else {}
    params |= _bundled(config, structs, params, trained)
    fresh = {path: struct for path, struct in structs.items() if path not in params}
    # One program a component, so that runs that differ in one network find the others' in the compilation cache.
    for name, key in system.keys(jax.random.key(config.seed)).items():
        with progress.phase(f"drawing the {name}"):
            params |= _draw(system.structures[name], key, f"{name}/", fresh)
    return params


def describe_params(
    config: TrainConfig, system: USO, shardings: Mapping[str, NamedSharding], trained: set[str]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shape, dtype and sharding of every parameter of a run, quantised as `config` asks."""
    return describe(_describe_whole(config, system, shardings, trained), config.model.quantization, QUANTIZED)


def check_weights(config: TrainConfig, paths: Iterable[str], trained: set[str]) -> None:
    """Raise InputError if a component that must come from the weights directory is not in it.

    Only the directory is listed. A missing component is an error where a stage needs it and none trains it, and where
    it would be a reward. Weights that may also come from an installed package are checked by `initial_params`.
    """
    have = _stored(config)
    missing = [
        name
        for name, found in by_component(paths).items()
        if name not in {*have, *config.model.fresh, *_BUNDLED} and not trained.issuperset(found.values())
    ]
    if config.model.weights:
        needed = set().union(*(OBJECTIVES[stage.loss].components(stage) for stage in config.run_stages))
        if config.evaluates:
            needed |= rewards.EVALUATION_COMPONENTS
        if absent := [name for name in missing if name in needed]:
            scoring = set().union(*(rewards.components(s.reward.names) for s in config.run_stages if s.reward))
            more = [name for name in missing if name in scoring and name not in absent]
            why = ", which no stage trains" + (f", and no {', '.join(more)}, which rewards need" if more else "")
            raise missing_components(mini.directory(config.model.weights), absent, why, more)
    _check_rewards(config, missing)


def _describe_whole(
    config: TrainConfig, system: USO, shardings: Mapping[str, NamedSharding], trained: set[str]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Describe parameters before they are quantised."""
    exact = {path for path in system.shapes if path in trained or path.split("/")[0] in _REWARDS}
    dtype = lambda path: jnp.float32 if path in exact else jnp.dtype(config.model.frozen_dtype)
    return {
        path: jax.ShapeDtypeStruct(shape.shape, dtype(path), sharding=shardings[path])
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


QUANTIZED = folders(lambda row: row.quantizable)
_REWARDS = folders(lambda row: row.rewards_only)
_BUNDLED = {row.folder: row for row in COMPONENTS.values() if row.bundled}  # packages may bring their weights


def _bundled(
    config: TrainConfig, structs: Mapping[str, jax.ShapeDtypeStruct], params: Params, trained: set[str]
) -> Params:
    """Read networks that the weights directory lacks from installed packages, where a reward needs them."""
    placed: Params = {}
    for name, row in _BUNDLED.items():
        prefix = f"{row.path}/"
        wanted = {p.removeprefix(prefix): s for p, s in structs.items() if p.startswith(prefix) and p not in params}
        found = row.bundled() if wanted else None
        if found and all(found[inner].shape == struct.shape for inner, struct in wanted.items()):
            for inner, struct in wanted.items():
                placed[prefix + inner] = jax.device_put(found[inner].astype(struct.dtype), struct.sharding)
        elif not trained.issuperset(prefix + inner for inner in wanted):
            _check_rewards(config, [name])
    return placed


def _check_rewards(config: TrainConfig, missing: Iterable[str]) -> None:
    """Raise InputError if a reward or judge needs a component without weights."""
    for stage in config.run_stages:
        needed = rewards.components(stage.scored.names) if stage.scored is not None else set()
        if random := sorted(needed & set(missing) - set(config.model.fresh)):
            raise InputError(
                f"stage {stage.name!r}, reward: there are no weights of {', '.join(random)}, and a network of"
                " random numbers rewards nothing; import them into --config.model.weights (docs/reward.md)"
            )


def _stored(config: TrainConfig) -> set[str]:
    """Return the components that are read from the weights directory."""
    return (
        set(weights.components(mini.directory(config.model.weights))) - set(config.model.fresh)
        if config.model.weights
        else set()
    )


def _load(config: TrainConfig, structs: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
    """Read every component that the weights directory has."""
    directory, have = mini.directory(config.model.weights), _stored(config)
    params: Params = {}
    for component, paths in by_component(structs).items():
        if component not in have:
            continue
        wanted = {inner: structs[path] for inner, path in paths.items()}
        with progress.phase(f"loading the {component} of {directory}"):
            if config.model.quantization and component in QUANTIZED:
                loaded = weights.load_quantized(directory, component, wanted, config.model.quantization)
                scales = {
                    quantization.scale_path(inner): quantization.scale_path(path) for inner, path in paths.items()
                }
                paths |= scales
            else:
                loaded = weights.load(directory, component, wanted)
        params |= {paths[inner]: value for inner, value in loaded.items()}
    return params
