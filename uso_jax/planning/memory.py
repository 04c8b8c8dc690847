# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Memory, communication and estimated time of a program on one device, from the device's compiler."""

import re
import time
from typing import Any

import jax
from jax.sharding import Mesh

from uso_jax.common import compat
from uso_jax.hardware import collectives
from uso_jax.hardware.chips import Chip
from uso_jax.planning import timing
from uso_jax.planning.programs import Program, device_bytes

_QUICK = {"exec_time_optimization_effort": -1.0}
_AMOUNT = re.compile(r"([\d.]+)([KMGT]?)")
_OVERFLOW = (  # required memory in the TPU compiler's out-of-memory errors
    re.compile(r"Total hbm usage >= ([\d.]+[KMGT]?)"),
    re.compile(r"Used ([\d.]+[KMGT]?) of [\d.]+[KMGT]? hbm"),
)
_TEMPORARIES = re.compile(r"required for HLO temporaries \(([\d.]+[KMGT]?)\)")
_PROGRAM = re.compile(r"\bprogram +([\d.]+[KMGT]?)")


def compile_program(program: Program, mesh: Mesh, chip: Chip, quick: bool) -> dict[str, Any]:
    """Compile a program; return its memory per device, whether it fits, its communication and time.

    Args:
      program: function and described arguments.
      mesh: of the devices.
      chip: whose memory must suffice.
      quick: compile with the least effort, which overestimates temporaries and makes a slower program.

    Returns:
      Byte counts, `fits`, `collectives`, compile times and, unless `quick`, `timing.estimate`; docs/plan.md describes
      every key.
    """
    idle = device_bytes(program.besides)
    started = time.monotonic(), time.process_time()
    clock = lambda: {
        "compile_seconds": round(time.monotonic() - started[0], 1),
        "compile_cpu_seconds": round(time.process_time() - started[1], 1),  # of all threads of this process
    }
    with jax.set_mesh(mesh):
        lowered = program.lower()
        used = compat.used_arguments(lowered)  # the others stay on the devices, beside the program
        unused = [x for x, is_used in zip(jax.tree.leaves(program.arguments), used, strict=True) if not is_used]
        idle += device_bytes(unused)
        try:
            compiled = lowered.compile(_QUICK if quick and chip.name != "cpu" else None)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            arguments = device_bytes(program.arguments) - device_bytes(unused)
            found = _overflow(str(error), arguments, chip)
            return found | {"idle_bytes": idle} | clock()
    seconds, memory = clock(), compiled.memory_analysis()
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    output, alias = memory.output_size_in_bytes, memory.alias_size_in_bytes
    total = arguments + temporary + output - alias + idle
    text = compiled.as_text()
    estimated = {} if quick else timing.estimate(text, program.loops, chip)
    return (
        {
            "argument_bytes": arguments,
            "temporary_bytes": temporary,
            "host_bytes": memory.host_temp_size_in_bytes,
            "output_bytes": output,
            "reused_bytes": alias,
            "idle_bytes": idle,
            "total_bytes": total,
            "usable_bytes": chip.usable_bytes,
            "fits": total <= chip.usable_bytes,
            "collectives": collectives.summarise(collectives.find_collectives(text, program.loops)),
        }
        | estimated
        | seconds
    )


def _overflow(message: str, arguments: int, chip: Chip) -> dict[str, Any]:
    """Parse an out-of-memory error. The compiler fails before outputs and communication are known."""
    total = next((_bytes(found[1]) for pattern in _OVERFLOW if (found := pattern.search(message))), 0)
    if found := _TEMPORARIES.search(message):
        total = max(total, _bytes(found[1]) + arguments)
    if found := _PROGRAM.search(message):
        total = max(total, _bytes(found[1]) + arguments)
    return {
        "argument_bytes": arguments,
        "temporary_bytes": max(total - arguments, 0),
        "host_bytes": 0,
        "output_bytes": 0,
        "reused_bytes": 0,
        "total_bytes": max(total, chip.usable_bytes + 1),
        "usable_bytes": chip.usable_bytes,
        "fits": False,
        "collectives": {},
        "compiler": message.splitlines()[0][:300],
    }


def _bytes(text: str) -> int:
    number, unit = _AMOUNT.match(text).groups()
    return int(float(number) * 1024 ** " KMGT".index(unit or " "))
