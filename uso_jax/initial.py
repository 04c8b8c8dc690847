# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The parameters a run starts from: converted weights where there are some, fresh numbers elsewhere."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from uso_jax import weights
from uso_jax.config import TrainConfig
from uso_jax.data import images
from uso_jax.data.pipeline import open_source
from uso_jax.errors import InputError
from uso_jax.models import patch_codec
from uso_jax.params import Params
from uso_jax.system import System

_CODEC_IMAGES = 2048


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
        params |= _load(config.weights, structs, trained)
    if isinstance(config.system.autoencoder, patch_codec.PatchCodecConfig) and "autoencoder/mean" not in params:
        fitted = patch_codec.fit(config.system.autoencoder, _targets(config))
        params |= {f"autoencoder/{path}": jax.device_put(v, where[f"autoencoder/{path}"]) for path, v in fitted.items()}
    fresh = [path for path in system.shapes if path not in params]

    def draw(rng):
        drawn = system.init(rng)  # what is not returned is never computed
        return {path: drawn[path].astype(dtypes[path]) for path in fresh}

    # Run once, so not worth optimising; on CPU that is most of the time a small run takes to start.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    draw = jax.jit(draw, out_shardings={path: where[path] for path in fresh}, compiler_options=options)
    return params | draw(jax.random.key(config.seed))


def _load(directory: str, structs: Mapping[str, jax.ShapeDtypeStruct], trained: set[str]) -> Params:
    """Read every component the directory has; one that it lacks must be trained from fresh numbers."""
    have = weights.components(directory)
    by_component: dict[str, dict[str, str]] = {}
    for path in structs:
        component, inner = _component(path)
        by_component.setdefault(component, {})[inner] = path
    params: Params = {}
    for component, paths in by_component.items():
        if component in have:
            loaded = weights.load(directory, component, {inner: structs[path] for inner, path in paths.items()})
            params |= {paths[inner]: value for inner, value in loaded.items()}
        elif not trained.issuperset(paths.values()):
            raise InputError(
                f"weights directory {directory} has no {component}, which no stage trains; convert it first:"
                f" python -m convert import FILE --to {directory}"
            )
    return params


def _component(path: str) -> tuple[str, str]:
    """Give the weights component of a system parameter and its path inside."""
    prefix, inner = path.split("/", 1)
    if prefix == "text":
        return tuple(inner.split("/", 1))
    return (weights.flux_component(inner) if prefix == "transformer" else prefix), inner


def _targets(config: TrainConfig) -> np.ndarray:
    source = open_source(config.data.train)
    numbers = range(min(_CODEC_IMAGES, len(source)))
    height, width = config.stages[0].target_size
    return np.stack([images.cover(source[number].target, (height, width)) for number in numbers])
