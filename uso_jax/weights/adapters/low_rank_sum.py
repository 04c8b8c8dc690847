# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Several adapters beside the same weights as one adapter, whose rank is the sum of theirs.

The factors of all of them lie side by side: [down_1 down_2] [up_1; up_2] = down_1 up_1 + down_2 up_2. Places with less
are filled up with zeros.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from uso_jax.models.layers import lora
from uso_jax.weights.adapters.changes import LowRank
from uso_jax.weights.tables.table import Piece


@dataclass(frozen=True)
class Columns:
    """The factors of one change beside a weight.

    Attributes:
      adapter: path of USO's adapter, such as "double_blocks/processor/qkv_lora1".
      layer: in the stack of blocks.
      piece: of the weight that it changes.
      rows: of `up`, those of the piece.
      factors: the product.
      strength: multiplies it.
    """

    adapter: str
    layer: int
    piece: Piece
    rows: tuple[int, int]
    factors: LowRank
    strength: float


def sum_low_rank(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    own: Mapping[str, Any],
    sizes: Mapping[str, lora.Sizes],
    columns: Sequence[Columns],
) -> dict[str, np.ndarray]:
    """Return adapters in float32 that are the sum of `own` times their factors and of all columns.

    Args:
      shapes: of adapters of rank 1 for this transformer.
      own: adapters of the transformer by path, or none.
      sizes: rank and factor of each of them; empty without them.
      columns: further ones.
    """
    first = {path: sizes[path].rank if own else 0 for path in lora.ADAPTERS}
    used: dict[tuple[str, int], int] = {}
    for one in columns:
        before = used.get((one.adapter, one.layer), first[one.adapter])
        used[one.adapter, one.layer] = before + one.factors.down.shape[0]
    rank = max((*used.values(), *first.values()))
    found = {}
    for path, struct in shapes.items():
        adapter, half, _ = path.rsplit("/", 2)
        down, size = half == "down", first[adapter]
        layers, inputs, outputs = struct.shape
        array = np.zeros((layers, inputs, rank) if down else (layers, rank, outputs), np.float32)
        if path in own and down:
            array[:, :, :size] = np.asarray(own[path], np.float32)
        elif path in own:
            array[:, :size] = np.asarray(own[path], np.float32) * np.float32(sizes[adapter].scale)
        found[path] = array
    used = {}
    for one in columns:
        start = used.get((one.adapter, one.layer), first[one.adapter])
        stop = used[one.adapter, one.layer] = start + one.factors.down.shape[0]
        down = one.factors.down.read().astype(np.float32).reshape(stop - start, -1)
        up = one.factors.up.read(*one.rows).astype(np.float32).reshape(-1, stop - start)
        factor = np.float32(one.factors.scale * one.strength)
        found[f"{one.adapter}/down/kernel"][one.layer, :, start:stop] = down.T
        found[f"{one.adapter}/up/kernel"][one.layer, start:stop, one.piece.start : one.piece.stop] = up.T * factor
    return found
