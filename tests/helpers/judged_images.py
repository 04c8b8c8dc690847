# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Roll-outs that no run has made: coloured squares, of which a judge prefers the redder one."""

import pathlib

import numpy as np

from uso_jax.data.rollout_store import Request, RolloutStore
from uso_jax.data.storage.places import Place


def write(workdir: pathlib.Path, *, groups: int = 4, group: int = 3, side: int = 16, number: int = 0) -> None:
    """Write a round of a stage "joint"."""
    draw = np.random.default_rng(number)
    colours = draw.integers(0, 256, (groups * group, 2, 2, 3), np.uint8)
    images = colours.repeat(side // 2, 1).repeat(side // 2, 2)
    requests = []
    for i in range(groups):
        content, style = (draw.integers(0, 256, (side, side, 3), np.uint8) for _ in range(2))
        requests.append(Request(f"a square {i}" if i % 2 else "", content, [style] if i % 3 else []))
    rows = np.stack([np.zeros(len(images), np.int64), np.arange(len(images)) // group], axis=1)
    store = RolloutStore(workdir / "rollouts" / "joint")
    store.write(number, images, rows, {"a": draw.random(len(images))}, np.zeros(len(images)), requests)


def redder(left: Place, right: Place) -> str:
    """Return the choice of the judge."""
    redness = [float(place.decode()[..., 0].mean()) for place in (left, right)]
    return "left" if redness[0] > redness[1] else "right"
