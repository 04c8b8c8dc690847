# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Communication volume of a compiled program, parsed from its HLO text.

A collective in a loop is multiplied by the trip count; a conditional counts as its most expensive branch. Sizes are
bytes per device: the array that is gathered, reduced or exchanged, and the bytes sent by a ring algorithm over a group
of g devices, (g - 1) / g of that size, or twice that for an all-reduce.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from uso_jax.hardware import hlo

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

_OPERATION = re.compile(rf"^(?:ROOT )?%?[\w.\-]+ = (.*?) ({'|'.join(KINDS)})(-start)?\((.*)$")
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\])")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}")


@dataclass(frozen=True)
class Traffic:
    """Total of one kind of collective in one execution of a program."""

    count: float = 0.0
    bytes: float = 0.0  # gathered, reduced or exchanged, per device
    sent: float = 0.0  # bytes leaving each device

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.count + other.count, self.bytes + other.bytes, self.sent + other.sent)

    def __mul__(self, times: float) -> "Traffic":
        return Traffic(self.count * times, self.bytes * times, self.sent * times)


def find_collectives(text: str, loops: float = 1.0) -> dict[str, Traffic]:
    """Return the traffic of a compiled program by kind of collective.

    Args:
      text: the text of the compiled module.
      loops: trip count assumed for loops whose length depends on data.

    Raises:
      ValueError: `text` has no entry computation.
    """
    module = hlo.parse(text)
    known: dict[str, dict[str, Traffic]] = {}

    def total(name: str) -> dict[str, Traffic]:
        if name not in known:
            known[name] = {}
            for line in module.lines(name):
                for kind, traffic in _of_line(name, line).items():
                    known[name][kind] = known[name].get(kind, Traffic()) + traffic
        return known[name]

    def _of_line(computation: str, line: str) -> dict[str, Traffic]:
        if operation := _OPERATION.match(line):
            return _operation(operation, fused=computation.startswith("all-reduce-scatter"))
        called = hlo.called(line)
        if " while(" in line:
            times = hlo.trips(line, module.lines(called["condition"]), loops)
            return {kind: traffic * times for kind, traffic in total(called["body"]).items()}
        if " conditional(" in line:
            each = map(total, hlo.branches(line))
            return max(each, key=lambda found: sum(traffic.sent for traffic in found.values()))
        return total(called["calls"]) if "calls" in called else {}

    return total(module.entry)


def _operation(operation: re.Match, fused: bool) -> dict[str, Traffic]:
    shape, kind, start, rest = operation.groups()
    size = _group_size(rest)
    arrays = hlo.arrays(shape)
    if start:  # drop the counters of the asynchronous form
        arrays = [(dtype, sizes) for dtype, sizes in arrays if sizes or not dtype.startswith("u")]
    full = sum((hlo.array_bytes(*array) for array in arrays), 0.0)
    if kind == "all-gather" and start:  # the result tuple also lists the operands
        full *= size / (size + 1)
    elif kind == "collective-permute" and start:
        full /= 2
    elif kind == "reduce-scatter":
        full *= size
    if kind == "all-reduce" and fused:  # the TPU compiler's form of a reduce-scatter
        kind = "reduce-scatter"
    share = {"collective-permute": 1.0, "all-reduce": 2 * (size - 1) / size}.get(kind, (size - 1) / size)
    return {kind: Traffic(1.0, full, full * share)}


def _group_size(text: str) -> int:
    """Parse {{0,1},{2,3}}, [groups,size]<=[...] or mesh['a'=2,'b'=4] {'b'}; part of an axis reads 'b':(1)2."""
    if named := _MESH.search(text):
        sizes = dict(re.findall(r"('[^']*')=(\d+)", named[1]))
        axes = re.findall(r"('[^']*')(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    groups = _GROUPS.search(text)
    return 2 if groups is None else int(groups[2]) if groups[2] else len(groups[1].split(","))


def summarise(found: Mapping[str, Traffic]) -> dict[str, dict[str, int]]:
    """Return traffic as JSON: kind -> {count, bytes, sent_bytes}, rounded."""
    return {
        kind: {"count": round(one.count), "bytes": round(one.bytes), "sent_bytes": round(one.sent)}
        for kind, one in sorted(found.items())
    }
