# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The parameters a run starts from: converted weights where there are some, fresh numbers elsewhere."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from uso_jax.config import TrainConfig
from uso_jax.data.pipeline import open_source
from uso_jax.models import patch_codec
from uso_jax.params import Params
from uso_jax.system import System

_CODEC_IMAGES = 2048


def initial_params(
    config: TrainConfig, system: System, where: Mapping[str, NamedSharding], trained: set[str]
) -> Params:
    """Give every parameter in its place: float32 if any stage trains it, otherwise in the config's frozen dtype."""
    dtypes = {path: jnp.float32 if path in trained else jnp.dtype(config.frozen_dtype) for path in system.shapes}
    params: Params = {}
    if isinstance(config.system.autoencoder, patch_codec.PatchCodecConfig):
        fitted = patch_codec.fit(config.system.autoencoder, _targets(config))
        params |= {f"autoencoder/{path}": jax.device_put(v, where[f"autoencoder/{path}"]) for path, v in fitted.items()}
    fresh = [path for path in system.shapes if path not in params]

    def draw(rng):
        drawn = system.init(rng)  # what is not returned is never computed
        return {path: drawn[path].astype(dtypes[path]) for path in fresh}

    return params | jax.jit(draw, out_shardings={path: where[path] for path in fresh})(jax.random.key(config.seed))


def _targets(config: TrainConfig) -> np.ndarray:
    source = open_source(config.data.train)
    numbers = range(min(_CODEC_IMAGES, len(source)))
    height, width = config.stages[0].target_size
    from uso_jax.data import images

    return np.stack([images.cover(source[number].target, (height, width)) for number in numbers])
