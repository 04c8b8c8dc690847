# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The networks of rewards without those of a model, to score images that are on disk."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from uso_jax import mini, weights
from uso_jax.models.components import by_component
from uso_jax.models.uso import USO
from uso_jax.models.uso_config import USOConfig
from uso_jax.params import Params
from uso_jax.training import rewards
from uso_jax.weights import manifest_configs, pretrained
from uso_jax.weights.pretrained import Pretrained


class RewardNetworks:
    """The networks of some rewards in a weights directory; they are loaded when they are first used."""

    def __init__(self, directory: str, names: Iterable[str]):
        self.weights, self.directory = directory, mini.directory(directory)
        self.components = sorted(rewards.components(names))

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprint of each network.

        Raises:
          InputError: one is missing.
        """
        for name in self.components:
            weights.manifest(self.directory, name)  # raises a clear error if a network is missing
        return {name: pretrained.fingerprint(self.directory / name) for name in self.components}

    @functools.cached_property
    def base(self) -> USOConfig:
        """The system whose tokenizers read prompts."""
        return Pretrained.open(self.weights).system.with_networks(self._configs)

    @functools.cached_property
    def system(self) -> USO:
        """The networks as a system; the others have mini's sizes, but are never allocated."""
        known = Pretrained.open("mini").system
        # A projector would ask for the style tower that mini's aligned one reads.
        plain = dataclasses.replace(known, transformer=dataclasses.replace(known.transformer, projector=None))
        config = plain.with_networks(self._configs)
        return USO(config, without=set(USO(config).structures) - set(self.components))

    @functools.cached_property
    def params(self) -> Params:
        """All numbers, in float32."""
        params: Params = {}
        for name, paths in by_component(self.system.shapes).items():
            shape = lambda path: jax.ShapeDtypeStruct(self.system.shapes[path].shape, jnp.float32)
            loaded = weights.load(self.directory, name, {inner: shape(path) for inner, path in paths.items()})
            params |= {paths[inner]: value for inner, value in loaded.items()}
        return params

    @functools.cached_property
    def _configs(self) -> dict[str, Any]:
        build = lambda name: manifest_configs.build(name, weights.manifest(self.directory, name)["config"])
        return {name: build(name) for name in self.components}
