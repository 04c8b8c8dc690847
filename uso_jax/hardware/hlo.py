# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The text of a compiled HLO module: computations, what they call, loops, source lines, and the bytes of arrays."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_BYTES = {"pred": 1.0, "bf16": 2.0}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_ONE = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_MANY = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_LIMIT = re.compile(r" constant\((\d+)\)")
_NUMBERED = re.compile(r"(\d+) (.*)$")  # a row of the tables of source lines
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_PACKAGE = "/uso_jax/"
_LINEAR = {"models/layers/linear.py", "models/layers/quantized_kernel.py"}  # all linear layers; their callers differ


@dataclass(frozen=True)
class Module:
    """The lines of every computation, by name, the name of the one that runs, and the tables of source lines."""

    computations: dict[str, list[str]]
    entry: str
    tables: dict[str, dict[int, str]] = field(default_factory=dict)

    def lines(self, name: str) -> list[str]:
        """Return the lines of a computation; none if the text does not have it."""
        return self.computations.get(name, [])

    def source(self, line: str) -> str:
        """Return "file:line" of what traced an operation, in this package if any of it was; "": unknown."""
        found = ""
        frame = int(noted[1]) if (noted := _FRAME.search(line)) else 0
        while row := self.tables.get("StackFrames", {}).get(frame):
            fields = dict(re.findall(r"(\w+)=(\d+)", row))
            place = dict(re.findall(r"(\w+)=(\d+)", self.tables["FileLocations"][int(fields["file_location_id"])]))
            path = self.tables["FileNames"][int(place["file_name_id"])].strip('"')
            _, package, inside = path.rpartition(_PACKAGE)
            name = (
                f"{package.lstrip('/')}{inside}:{place['line']}"
                if package
                else f"{path.rpartition('/')[2]}:{place['line']}"
            )
            if package and inside not in _LINEAR:
                return name
            found = found or name
            frame = int(fields["parent_frame_id"]) - 1
        return found


def parse(text: str) -> Module:
    """Split the text of a compiled module into its computations.

    Raises:
      ValueError: it has no entry computation.
    """
    computations: dict[str, list[str]] = {}
    tables: dict[str, dict[int, str]] = {}
    entry, lines, table = "", [], None
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            lines = computations[start[2]] = []
            entry = start[2] if start[1] else entry
        elif line.startswith("  "):
            lines.append(line.strip())
        elif table is not None and (row := _NUMBERED.match(line)):
            table[int(row[1])] = row[2]
        elif line.isalpha():
            table = tables[line] = {}
        elif lines and line.startswith(('"', "}}")):  # attributes of kernels contain line breaks
            lines[-1] += line
    if not entry:
        raise ValueError("not the text of an HLO module: no entry computation")
    return Module(computations, entry, tables)


def called(line: str) -> dict[str, str]:
    """Return the computations that an operation calls, by their role, such as "body" or "calls"."""
    return dict(_ONE.findall(line))


def branches(line: str) -> list[str]:
    """Return the computations of a conditional."""
    many = _MANY.search(line)
    return [part.strip().lstrip("%") for part in many[1].split(",")] if many else list(called(line).values())


def trips(line: str, condition: list[str], loops: float) -> float:
    """Return a loop's trip count: the compiler's annotation, else the only constant in its condition, else `loops`."""
    if noted := re.search(r'known_trip_count"?[:=]\{"?n"?:"?(\d+)', line):
        return float(noted[1])
    limits = {int(limit[1]) for text in condition if (limit := _LIMIT.search(text))}
    return float(limits.pop()) if len(limits) == 1 else loops


def arrays(shape: str) -> list[tuple[str, str]]:
    """Return the arrays of a shape, of one or a tuple, as (dtype, sizes separated by commas)."""
    return _ARRAY.findall(shape)


def array_bytes(dtype: str, sizes: str) -> float:
    """Return the bytes of an array without padding."""
    return width(dtype) * math.prod(numbers(sizes))


def numbers(text: str) -> Sequence[int]:
    """Parse integers separated by commas."""
    return [int(number) for number in text.split(",") if number]


def width(dtype: str) -> float:
    """Return the bytes of one element."""
    if dtype in _BYTES:
        return _BYTES[dtype]
    return 1.0 if dtype.startswith("f8") else int(re.findall(r"\d+", dtype)[0]) / 8
