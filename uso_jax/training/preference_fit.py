# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Fit a scorer to the verdicts on the images of a run (uso_jax.preferences), with the networks of some rewards.

Shapes: b images of a batch, n pairs, f features.
"""

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from uso_jax import mini, weights
from uso_jax.common import progress
from uso_jax.common.errors import InputError
from uso_jax.data import rollout_store
from uso_jax.data.rollout_store import Group
from uso_jax.models.uso import to_float
from uso_jax.preferences import bradley_terry
from uso_jax.preferences.scorer import Scorer, blocks, size
from uso_jax.preferences.verdicts import Verdict, Verdicts
from uso_jax.training import preference, rewards
from uso_jax.training.reward_networks import RewardNetworks

_BATCH = 16  # images that are embedded at once
_VALUE = {"left": 1.0, "right": 0.0, "neither": 0.5}


@dataclass(frozen=True)
class Fitted:
    """A scorer, and what there is to say about its fit.

    Attributes:
      scorer: what is written to a file.
      single: accuracy of each reward alone, on the same held-out pairs.
      undecided: pairs on which the person could not say.
      lost: verdicts on images that are no longer there.
      damaged: errors of lines that are no verdict.
    """

    scorer: Scorer
    single: dict[str, float]
    undecided: int
    lost: int
    damaged: list[InputError]


def fit(workdir: pathlib.Path, directory: str, names: Sequence[str] = ()) -> Fitted:
    """Fit a scorer to the verdicts in a run's directory.

    Args:
      workdir: of a run with roll-outs.
      directory: weights directory with the networks.
      names: rewards that it is built from; by default all that are cosines and whose networks the directory has.

    Raises:
      InputError: there are too few verdicts, a network is missing, or a file is damaged.
    """
    damaged: list[InputError] = []
    verdicts = Verdicts(workdir).read(damaged.append)
    group_of = {key: group for group in rollout_store.groups(workdir / "rollouts") for key in group.images}
    found = [one for one in verdicts if group_of.get(one.left) is group_of.get(one.right) is not None]
    if not found:
        raise InputError(
            f"{workdir} has no verdicts on images of its roll-outs; judge pairs with: uso-app --preferences {workdir}"
        )
    names = list(names) or _available(directory)
    if unknown := [name for name in names if name not in preference.known()]:
        raise InputError(f"{unknown[0]!r} is no reward of a scorer; known are {', '.join(preference.known())}")
    networks = RewardNetworks(directory, names)
    fingerprints = networks.fingerprints()
    if missing := {token for name in names for token in rewards.get(name).tokens} - networks.base.token_counts().keys():
        raise InputError(f"{directory} does not have {', '.join(sorted(missing))}, which {', '.join(names)} read")

    x, widths = _features(networks, names, _judged(found, group_of))
    left, right = (np.stack([x[getattr(one, side)] for one in found]) for side in ("left", "right"))
    better = np.array([_VALUE[one.better] for one in found])
    fitted = bradley_terry.fit(
        left - right, better, [group_of[one.left].name for one in found], [b for w in widths for b in blocks(w)]
    )
    held, cosines = fitted.heldout, np.cumsum([0, *map(size, widths)])[:-1]
    single = {
        name: bradley_terry.accuracy((left - right)[held, column], better[held])
        for name, column in zip(names, cosines, strict=True)
    }
    scorer = Scorer(
        rewards=dict(zip(names, widths, strict=True)),
        weights=[float(value) for value in fitted.weights],
        offset=float(np.concatenate([left, right]).mean(axis=0) @ fitted.weights),
        networks=fingerprints,
        pairs=(fitted.fitted, int(held.sum())),
        accuracy=fitted.accuracy,
    )
    return Fitted(scorer, single, int((better == 0.5).sum()), len(verdicts) - len(found), damaged)


def _available(directory: str) -> list[str]:
    """Return the rewards of `preference.known` whose networks a weights directory has."""
    have = set(weights.components(mini.directory(directory)))
    names = [name for name in preference.known() if rewards.components([name]) <= have]
    if not names:
        raise InputError(f"{directory} has no network of {', '.join(preference.known())}; name another --weights")
    return names


def _judged(found: Sequence[Verdict], group_of: Mapping[str, Group]) -> dict[str, Group]:
    return {key: group_of[key] for one in found for key in (one.left, one.right)}


def _features(
    networks: RewardNetworks, names: Sequence[str], judged: Mapping[str, Group]
) -> tuple[dict[str, Float[np.ndarray, " f"]], list[int]]:
    """Return the features of images by key, and the widths of the vectors of the rewards."""
    system = networks.system

    @jax.jit
    def embed(params, batch):
        described = preference.describe(system, params, names, batch)
        return preference.features(system, params, to_float(batch["images"]), names, described), described

    found: dict[str, Float[np.ndarray, " f"]] = {}
    waiting: dict[Any, list[tuple[str, dict[str, np.ndarray]]]] = {}  # by the shapes of their arrays
    widths: list[int] = []

    def flush(shapes: Any) -> None:
        items = waiting.pop(shapes)
        filled = items + items[-1:] * (_BATCH - len(items))
        batch = {name: np.stack([example[name] for _, example in filled]) for name in items[0][1]}
        values, described = jax.device_get(embed(networks.params, batch))
        widths[:] = [vectors.shape[-1] for vectors in described]
        found.update({key: value.astype(np.float64) for (key, _), value in zip(items, values, strict=False)})

    for key, group in progress.bar(judged.items(), "embedding images", unit="image", leave=False):
        example = _example(networks, key, group)
        shapes = tuple(sorted((name, value.shape) for name, value in example.items()))
        waiting.setdefault(shapes, []).append((key, example))
        if len(waiting[shapes]) == _BATCH:
            flush(shapes)
    for shapes in list(waiting):
        flush(shapes)
    return found, widths


def _example(networks: RewardNetworks, key: str, group: Group) -> dict[str, np.ndarray]:
    """Return an image and its references as one example of a batch; what is absent is a black pixel."""
    absent = np.zeros((1, 1, 3), np.uint8)
    content = absent if group.content is None else group.content.decode()
    styles = [style.decode() for style in group.styles]
    return {
        "images": group.images[key].decode(),
        "content": content,
        "content_valid": np.array(group.content is not None),
        "style": np.stack(styles or [absent]),
        "style_valid": np.array([True] * len(styles) or [False]),
        **networks.base.tokenize(group.prompt),
    }
