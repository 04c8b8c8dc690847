# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The parameters a run starts from: converted weights where there are some, fresh numbers elsewhere."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from uso_jax import mini, weights
from uso_jax.config import TrainConfig
from uso_jax.errors import InputError
from uso_jax.objectives import OBJECTIVES
from uso_jax.params import Params
from uso_jax.system import System


def initial_params(
    config: TrainConfig, system: System, where: Mapping[str, NamedSharding], trained: set[str]
) -> Params:
    """Give every parameter in its place: float32 if any stage trains it, otherwise in the config's frozen dtype.

    Raises:
      InputError: the weights directory lacks a component that no stage trains.
    """
    dtypes = {path: jnp.float32 if path in trained else jnp.dtype(config.frozen_dtype) for path in system.shapes}
    structs = {
        path: jax.ShapeDtypeStruct(shape.shape, dtypes[path], sharding=where[path])
        for path, shape in system.shapes.items()
    }
    params: Params = {}
    if config.weights:
        needed = set().union(*(OBJECTIVES[stage.loss].components(stage) for stage in config.stages))
        params |= _load(config.weights, structs, trained, needed)
    fresh = [path for path in system.shapes if path not in params]

    def draw(rng):
        drawn = system.init(rng)  # what is not returned is never computed
        return {path: drawn[path].astype(dtypes[path]) for path in fresh}

    # Run once, so not worth optimising; on CPU that is most of the time a small run takes to start.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    draw = jax.jit(draw, out_shardings={path: where[path] for path in fresh}, compiler_options=options)
    return params | draw(jax.random.key(config.seed))


def _load(directory: str, structs: Mapping[str, jax.ShapeDtypeStruct], trained: set[str], needed: set[str]) -> Params:
    """Read every component the directory has; one that it lacks must be trained, or be needed by no stage."""
    directory = str(mini.WEIGHTS) if directory == "mini" else directory
    have = weights.components(directory)
    by_component: dict[str, dict[str, str]] = {}
    for path in structs:
        component, inner = weights.component_of(path)
        by_component.setdefault(component, {})[inner] = path
    params: Params = {}
    for component, paths in by_component.items():
        if component in have:
            loaded = weights.load(directory, component, {inner: structs[path] for inner, path in paths.items()})
            params |= {paths[inner]: value for inner, value in loaded.items()}
        elif component in needed and not trained.issuperset(paths.values()):
            raise InputError(
                f"weights directory {directory} has no {component}, which no stage trains; convert it first:"
                f" python -m convert import FILE --to {directory}"
            )
    return params
