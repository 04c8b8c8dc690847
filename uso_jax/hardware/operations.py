# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Time and memory traffic of a compiled TPU program by operation, parsed from its HLO text.

The TPU compiler writes its estimate in cycles beside every fusion and copy, but not beside Pallas kernels. An operation
in a loop is multiplied by the trip count; a conditional counts as its slowest branch.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from uso_jax.hardware import hlo

Kind = Literal["products", "layout", "other", "kernels"]

_OPERATION = re.compile(r"^(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NAME = re.compile(r'op_name="([^"]*)"')
_LAID_OUT = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^{}]*))?\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
_ELSEWHERE = re.compile(r"S\(\d+\)")  # arrays in on-chip or host memory
_PRODUCTS = {"dot", "convolution"}
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "iota"}
_MOVES = _FREE | {
    "copy", "copy-start", "copy-done", "transpose", "pad", "concatenate", "slice", "slice-start", "slice-done",
    "dynamic-slice", "dynamic-update-slice", "reshape", "broadcast", "reverse",
}  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """One operation of a program."""

    kind: Kind
    label: str  # path of the traced function; of a kernel, its name
    source: str  # file:line; "": unknown
    times: float  # how often it runs
    cycles: float | None  # for one time; None: the compiler does not say
    bytes: float  # read from and written to the device's memory, one time
    operands: tuple[tuple[int, ...], ...] = ()  # shapes


def find_operations(text: str, loops: float = 1.0) -> list[Operation]:
    """Return the operations of a compiled program that take time or memory traffic.

    Args:
      text: the text of the compiled module.
      loops: trip count assumed for loops whose length depends on data.

    Raises:
      ValueError: `text` has no entry computation.
    """
    reader = _Reader(hlo.parse(text), loops)
    return list(reader.operations(reader.module.entry, 1.0))


class _Line:
    """The parts of a line: name, shape, operation and operands."""

    def __init__(self, text: str, match: re.Match):
        self.text, (self.name, self.shape, self.code, rest) = text, match.groups()
        self.operands = re.findall(r"%([\w.\-]+)", rest.partition(")")[0])


class _Reader:
    def __init__(self, module: hlo.Module, loops: float):
        self.module, self.loops = module, loops
        self.lines = {
            name: [_Line(line, match) for line in lines if (match := _OPERATION.match(line))]
            for name, lines in module.computations.items()
        }
        self.shapes = {line.name: line.shape for lines in self.lines.values() for line in lines}

    def operations(self, name: str, times: float) -> Iterator[Operation]:
        """Yield the operations of a computation that runs a number of times."""
        for line in self.lines.get(name, ()):
            called = hlo.called(line.text)
            if line.code == "while":
                trips = hlo.trips(line.text, self.module.lines(called["condition"]), self.loops)
                yield from self.operations(called["body"], times * trips)
            elif line.code == "conditional":
                each = [list(self.operations(branch, times)) for branch in hlo.branches(line.text)]
                yield from max(each, key=lambda found: sum(one.times * (one.cycles or 0) for one in found))
            elif line.code in ("call", "async-start"):
                yield from self.operations(called.get("calls") or called["to_apply"], times)
            elif line.code not in _FREE and not line.code.endswith("-done"):
                cycles, label = _CYCLES.search(line.text), _NAME.search(line.text)
                if (kind := self._kind(line)) is not None:
                    yield Operation(
                        kind,
                        label[1] if label and kind != "kernels" else re.sub(r"\.\d+$", "", line.name),
                        self.module.source(line.text),
                        times,
                        float(cycles[1]) if cycles else None,
                        self._bytes(line),
                        tuple(
                            tuple(hlo.numbers(sizes))
                            for name in line.operands
                            for _, sizes in hlo.arrays(self.shapes.get(name, ""))[:1]
                        ),
                    )

    def _kind(self, line: _Line) -> Kind | None:
        if line.code == "custom-call":
            return "kernels" if 'custom_call_target="tpu_custom_call"' in line.text else None
        codes = self._codes(line)
        if codes & _PRODUCTS:
            return "products"
        return "layout" if codes <= _MOVES and not line.code.endswith("-start") else "other"

    def _codes(self, line: _Line) -> set[str]:
        """Return what an operation does; of a fusion, everything in it."""
        if line.code != "fusion":
            return {line.code}
        return set().union(*map(self._codes, self.lines.get(hlo.called(line.text)["calls"], ())))

    def _bytes(self, line: _Line) -> float:
        """Return what an operation reads and writes. A fusion that reads or writes slices is charged for these."""
        body = self.lines.get(hlo.called(line.text).get("calls", ""), [])
        shapes = [self.shapes.get(name, "") for name in line.operands]
        result = laid_out_bytes(line.shape)
        if line.code == "dynamic-update-slice":
            return 2 * laid_out_bytes(shapes[1])
        if line.code in ("dynamic-slice", "slice"):
            return 2 * result
        if line.code != "fusion":
            return result + sum(map(laid_out_bytes, shapes))
        if body and body[-1].code == "dynamic-update-slice":
            result = laid_out_bytes(self.shapes.get(body[-1].operands[1], ""))
        return result + sum(self._read_bytes(body, number, shape) for number, shape in enumerate(shapes))

    def _read_bytes(self, body: list[_Line], number: int, shape: str) -> float:
        """Return what a fusion reads of an operand: all, or the slices that are all it uses; 0 of what it updates."""
        found, total = (
            {line.name for line in body if line.code == "parameter" and f"parameter({number})" in line.text},
            0.0,
        )
        for line in body:
            if not found.intersection(line.operands):
                continue
            if line.code == "bitcast":
                found.add(line.name)
            elif line.code == "dynamic-slice" and line.operands[0] in found:
                total += laid_out_bytes(line.shape)
            elif line.code == "fusion":
                inner = self.lines.get(hlo.called(line.text)["calls"], [])
                total += sum(
                    self._read_bytes(inner, place, shape) for place, name in enumerate(line.operands) if name in found
                )
            elif not (line.code == "dynamic-update-slice" and line.operands[0] in found):
                return laid_out_bytes(shape)
        return min(total, laid_out_bytes(shape)) if laid_out_bytes(shape) else 0.0


def laid_out_bytes(shape: str) -> float:
    """Return the bytes that arrays take in the device's memory, with the padding of their tiles."""
    total = 0.0
    for dtype, sizes, order, rest in _LAID_OUT.findall(shape):
        if _ELSEWHERE.search(rest):
            continue
        dims, tile = hlo.numbers(sizes), _TILE.search(rest)
        if tile is not None and dims:
            minor_first = [dims[axis] for axis in hlo.numbers(order)]
            for place, multiple in enumerate(reversed(hlo.numbers(tile[1]))):
                if place < len(minor_first):
                    minor_first[place] = -(-minor_first[place] // multiple) * multiple
            dims = minor_first
        total += hlo.width(dtype) * math.prod(dims)
    return total
