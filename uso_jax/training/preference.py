# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The reward "preference:FILE": what a linear scorer, fitted to choices of people, thinks of an image.

    r(x) = w . [<e_1(x), f_1>, e_1(x) * f_1, e_1(x), <e_2(x), f_2>, ...] - offset

e_k is the image's unit vector of the k-th reward that is a cosine, f_k that of its reference, and * the product of
their numbers; an absent reference is 0. So the scorer weighs the cosines, what they are made of, and looks that people
like whatever the reference is. r is differentiable, and a difference of 1 is e to 1 odds (uso_jax.preferences).
Shapes: b batch, d width of a vector, k rewards, f features.
"""

import functools
import pathlib
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from uso_jax.common.errors import InputError
from uso_jax.models.uso import USO, Batch
from uso_jax.params import Params
from uso_jax.preferences.scorer import Scorer
from uso_jax.training import rewards
from uso_jax.training.rewards import Images, Reward
from uso_jax.weights import pretrained


def known() -> list[str]:
    """Return the rewards that a scorer may be built from: those that are cosines."""
    return [name for name, reward in rewards.REWARDS.items() if reward.embed is not None]


def describe(system: USO, params: Params, names: Iterable[str], batch: Batch) -> list[Float[Array, "b _"]]:
    """Return the vectors of the references, f of each reward; 0 where a sample has none."""
    names = list(names)
    has = rewards.valid(system, names, batch)
    return [jnp.where(has[name][:, None], rewards.get(name).describe(system, params, batch), 0.0) for name in names]


def features(
    system: USO, params: Params, images: Images, names: Iterable[str], described: Sequence[Float[Array, "b _"]]
) -> Float[Array, "b f"]:
    """Return all features of images, in the order of `uso_jax.preferences.scorer`."""
    parts = []
    for name, reference in zip(names, described, strict=True):
        vector = rewards.get(name).embed(system, params, images)
        product = vector * reference
        parts += [jnp.sum(product, axis=-1, keepdims=True), product, vector]
    return jnp.concatenate(parts, axis=-1)


@functools.cache
def reward(file: str) -> Reward:
    """Return the reward of a scorer's file; within a process it is that of the first reading.

    Raises:
      InputError: the file is missing or damaged, or built from a reward that is none of `known`.
    """
    scorer = Scorer.read(pathlib.Path(file))
    names = list(scorer.rewards)
    if unknown := [name for name in names if name not in known()]:
        raise InputError(f"{file} is built from {', '.join(unknown)}; a scorer may read {', '.join(known())}")
    weights = np.asarray(scorer.weights, np.float32)

    def score(system: USO, params: Params, images: Images, described: Sequence[Float[Array, "b _"]]):
        found = features(system, params, images, names, described)
        if found.shape[-1] != len(weights):
            raise InputError(
                f"{file} was fitted to {len(weights)} features, but the networks of this run have"
                f" {found.shape[-1]}; fit it with the weights of this run"
            )
        return found @ weights - scorer.offset

    return Reward(
        score=score,
        describe=lambda system, params, batch: describe(system, params, names, batch),
        components=tuple(sorted(rewards.components(names))),
        tokens=tuple(sorted({token for name in names for token in rewards.get(name).tokens})),
    )


def check_networks(file: str, directory: pathlib.Path, components: Iterable[str]) -> None:
    """Raise InputError if a scorer was fitted with other networks than the components of a weights directory."""
    for name, fingerprint in Scorer.read(pathlib.Path(file)).networks.items():
        if name in components and pretrained.fingerprint(directory / name) != fingerprint:
            raise InputError(
                f"{file} was fitted with another {name} than {directory} has; fit it with --weights {directory}"
            )
