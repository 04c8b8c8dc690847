# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Accelerator specifications, and TPU slices by name, for planning without the hardware.

Sources: peaks and bandwidths from docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, "key specifications"; usable
memory from the out-of-memory errors of libtpu 0.0.42's compiler, which reserves the rest of HBM.
"""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from uso_jax.common.errors import InputError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One XLA device: a chip, or one of the two cores of a TPU7x chip."""

    name: str
    usable_bytes: int
    bf16_flops: float | None = None  # dense FLOP/s; None: unknown
    int8_ops: float | None = None  # operations/s; for TPU7x, float8 instead of int8
    memory_bandwidth: float | None = None  # bytes/s
    network_bandwidth: float | None = None  # outgoing bytes/s over all links
    libtpu: str = ""  # libtpu's name for the chip
    axes: int = 2  # dimensions of the torus
    options: tuple[tuple[str, Any], ...] = ()
    clock: float | None = None  # cycles/s of the core, which the compiler's estimates count; None: unknown


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "v4", int(30.75 * GIB), 275e12, 275e12, 1228e9, 300e9, "v4", 3, (("chip_config_name", "megacore"),), 1.05e9
        ),
        Chip("v5e", int(15.75 * GIB), 197e12, 393e12, 819e9, 200e9, "v5e", clock=1.5e9),
        Chip("v5p", int(95.74 * GIB), 459e12, 918e12, 2765e9, 600e9, "v5", 3, clock=1.75e9),
        Chip("v6e", int(31.25 * GIB), 918e12, 1836e12, 1640e9, 400e9, "v6e", clock=1.75e9),
        Chip("tpu7x", int(94.75 * GIB), 1153e12, 2307e12, 3690e9, 300e9, "tpu7x", 3),
    )
}


_KINDS = {  # bf16 FLOP/s by jax.Device.device_kind; GPUs: nvidia.com data sheets, without sparsity
    "TPU v4": CHIPS["v4"].bf16_flops,
    "TPU v5 lite": CHIPS["v5e"].bf16_flops,
    "TPU v5": CHIPS["v5p"].bf16_flops,
    "TPU v5p": CHIPS["v5p"].bf16_flops,
    "TPU v6 lite": CHIPS["v6e"].bf16_flops,
    "TPU7x": CHIPS["tpu7x"].bf16_flops,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(kind: str) -> float | None:
    """Return the dense bfloat16 FLOP/s of a `device_kind`, such as "TPU v5 lite", or None if unknown."""
    # GPU names carry memory and socket suffixes: "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-40GB".
    goes_on = lambda name: kind.startswith("NVIDIA") and re.match(rf"{re.escape(name)}[ -]", kind)
    known = [name for name in _KINDS if kind == name or goes_on(name)]
    return _KINDS[max(known, key=len)] if known else None


_ALONE = {  # stops libtpu from probing for a local TPU, logging errors and locking out other processes
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True)
class Slice:
    """Devices to compile for; they need not be attached."""

    name: str
    chip: Chip
    devices: Sequence[Any]


def find_slice(name: str) -> Slice:
    """Return the slice with a name such as "v5e:4x4" or "v5p:2x2x1"; "cpu:8" is 8 CPU devices of this machine.

    Raises:
      InputError: the chip or the slice does not exist, or libtpu is not installed.
    """
    kind, _, size = name.partition(":")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        raise InputError(f"topology {name!r} must be CHIP:SIZE, such as v5e:4x4 or v5p:2x2x1")
    sizes = tuple(map(int, size.split("x")))
    if kind == "cpu":
        return _cpu(name, math.prod(sizes))
    if kind not in CHIPS:
        raise InputError(f"topology {name!r}: unknown chip {kind!r}; known chips: {', '.join(CHIPS)}, cpu")
    chip = CHIPS[kind]
    if len(sizes) != chip.axes:
        example = "x".join("2" * chip.axes)
        raise InputError(f"topology {name!r}: {kind} sizes have {chip.axes} numbers, such as {kind}:{example}")
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("compiling for a TPU requires libtpu; install it with pip install 'uso_jax[tpu]'")
    for variable, value in _ALONE.items():
        os.environ.setdefault(variable, value)
    # A host has 2x2 chips; smaller slices are parts of one host.
    options = {"chips_per_host_bounds": (min(sizes[0], 2), min(sizes[1], 2), 1), **dict(chip.options)}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=f"{chip.libtpu}:{size}", **options)
    except Exception as error:  # the type depends on the JAX version
        raise InputError(f"topology {name!r} does not exist: {str(error).splitlines()[0]}") from error
    return Slice(name, chip, list(found.devices))


def _cpu(name: str, count: int) -> Slice:
    devices = jax.devices("cpu")
    if count > len(devices):
        raise InputError(
            f"topology {name!r}: JAX has {len(devices)} CPU devices; for more, set"
            f" XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Slice(name, Chip("cpu", memory // count), devices[:count])
