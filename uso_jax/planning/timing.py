# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Estimated time of a compiled TPU program by kind of operation, and the operations that take most of it.

The high end of an estimate is the compiler's. It assumes that moving data takes longer than its bytes do, so the low
end of layout changes and of elementwise operations is their bytes at the memory's bandwidth, where that is less. Pallas
kernels take their bundles (`kernels`), or their bytes at that bandwidth where these take longer.
"""

import collections
from typing import Any, get_args

from uso_jax.hardware.chips import Chip
from uso_jax.hardware.operations import Kind, Operation, find_operations
from uso_jax.planning import kernels

_DEAREST = 10


def estimate(text: str, loops: float, chip: Chip) -> dict[str, Any]:
    """Return the estimated milliseconds and memory traffic of one execution on one device.

    Args:
      text: the text of the compiled module.
      loops: trip count assumed for loops whose length depends on data.
      chip: which it was compiled for.

    Returns:
      `estimated_ms_high`, `estimated_ms_low`, `kinds` and `dearest`; docs/plan.md describes every key. Nothing where
      the chip's clock is unknown.
    """
    if chip.clock is None:
        return {}
    kinds = {kind: dict.fromkeys(("ms_high", "ms_low", "hbm_bytes", "count"), 0.0) for kind in get_args(Kind)}
    lines: dict[tuple[str, str, str], Any] = collections.defaultdict(lambda: dict.fromkeys(("ms", "hbm_bytes"), 0.0))
    for one in find_operations(text, loops):
        low, high = _milliseconds(one, chip)
        row = kinds[one.kind]
        row["ms_high"] += one.times * high
        row["ms_low"] += one.times * low
        row["hbm_bytes"] += one.times * one.bytes
        row["count"] += one.times
        line = lines[one.kind, one.source, one.label.rpartition("/")[2]]
        line["ms"] += one.times * high
        line["hbm_bytes"] += one.times * one.bytes
    dearest = sorted(lines.items(), key=lambda item: -item[1]["ms"])[:_DEAREST]
    names = ("kind", "source", "operation")
    return {
        "estimated_ms_high": sum(row["ms_high"] for row in kinds.values()),
        "estimated_ms_low": sum(row["ms_low"] for row in kinds.values()),
        "kinds": kinds,
        "dearest": [dict(zip(names, key, strict=True)) | values for key, values in dearest],
    }


def _milliseconds(one: Operation, chip: Chip) -> tuple[float, float]:
    """Return the low and the high end for one time."""
    moving = 1000 * one.bytes / chip.memory_bandwidth
    if one.kind == "kernels":
        computing = 1000 * (kernels.bundles(one, chip.name) or 0.0) / chip.clock
        return (max(computing, moving),) * 2
    computing = 1000 * (one.cycles or 0.0) / chip.clock
    return (computing if one.kind == "products" else min(computing, moving)), computing
