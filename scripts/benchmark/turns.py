# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Measurements of the benchmark. Both sides take turns, so that other load on the machine slows both."""

import argparse
import ctypes
import gc
import math
import os
import pathlib
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tasks import NETWORKS, SIZES, VARIANTS, Run, Sizes, load, run, variants_of
from torch_peer import Peer, Weights, matmul

from uso_jax.common import progress
from uso_jax.params import Params


def measure(
    tasks: Sequence[str],
    size: str,
    operations: Mapping[str, float],
    args: argparse.Namespace,
    keep: Callable[[dict], object] = lambda report: None,
) -> dict:
    """Measure tasks in order. Return the report that scripts/benchmark/__main__.py prints and writes with --json.

    Args:
      tasks: names.
      size: a key of SIZES.
      operations: of each task.
      args: of the command.
      keep: called with the report after each of its rows.
    """
    sizes, threads = SIZES[size], len(os.sched_getaffinity(0))
    on_cpu = jax.default_backend() == "cpu"
    deadline = time.monotonic() + args.seconds if args.seconds else math.inf
    report = {
        "size": size,
        "device": _processor() if on_cpu else jax.devices()[0].device_kind,
        "threads": threads,
        "tokens": sizes.tokens,
        "dtype": sizes.transformer.dtype,
        "steps": args.steps,
        "repeats": args.repeats,
        "versions": {name: version(name) for name in ("jax", "torch", "diffusers", "transformers", "peft")},
        "matmul_tflops": _ceiling(sizes, threads),
        "memory": "resident set above what it was before the call" if on_cpu else "device, weights included",
        "rows": [],
    }
    networks: dict[str, tuple[Weights, Params]] = {}
    with progress.bar(total=len(tasks), unit="task") as bar:
        for number, task in enumerate(tasks):
            bar.describe(task)
            if time.monotonic() > deadline:
                report["rows"].append({"task": task, "peer": "all", "failed": f"--seconds {args.seconds} were over"})
                continue
            match = _Match(task, sizes, args, threads, networks, deadline)
            for row in match.rows(operations[task]):
                report["rows"].append(row)
                keep(report)
            del match
            used = {NETWORKS[later] for later in tasks[number + 1 :]}
            networks = {name: shared for name, shared in networks.items() if name in used}
            gc.collect()  # before the next networks are created
            bar.update()
    return report


class _Match:
    """One task and all implementations of it; each takes turns with ours."""

    def __init__(
        self,
        task: str,
        sizes: Sizes,
        args: argparse.Namespace,
        threads: int,
        networks: dict[str, tuple[Weights, Params]],
        deadline: float,
    ):
        self._task, self._sizes, self._args, self._deadline = task, sizes, args, deadline
        network = NETWORKS[task]
        weights = networks[network][0] if network in networks else None
        self._peer = Peer(task, sizes, args.steps, threads, weights)
        if weights is None:
            networks[network] = self._peer.weights, load(task, sizes, self._peer.arrays())
        self._params = networks[network][1]
        self._ours, self._program_bytes = run(task, sizes, args.steps, self._params)
        self._first = self._ours()
        self._our_bytes = self._program_bytes if jax.default_backend() != "cpu" else _peak_above(self._ours)

    def rows(self, operations: float) -> Iterator[dict]:
        """Yield the rows of the table, one for each implementation; one that fails is a row too."""
        variants = variants_of(self._task) if self._args.variants else []
        for name in ["eager", *variants, *(["compile"] if self._args.compile else [])]:
            row = {"task": self._task, "peer": name}
            try:
                if time.monotonic() > self._deadline:
                    raise TimeoutError(f"--seconds {self._args.seconds} were over")
                yield row | self._figures(name, operations)
            except Exception as error:  # such as torch's compiler: only this row fails
                if name == "eager" and not isinstance(error, TimeoutError):
                    raise
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                yield row | {"failed": reason}

    def _figures(self, name: str, operations: float) -> dict[str, Any]:
        """Run both sides in turns, every second time in reverse order."""
        side, its_bytes = self._side(name)
        sides = {"ours": self._ours, name: side}
        difference = _difference(self._first, side())
        if its_bytes is None:
            on_device = self._peer.peak_bytes(side)
            its_bytes = _peak_above(side) if on_device is None else on_device
        wall, cpu = ({name: [] for name in sides} for _ in range(2))
        for turn in range(self._args.repeats):
            for one in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                seconds, busy = time.perf_counter(), time.process_time()
                sides[one]()
                wall[one].append(time.perf_counter() - seconds)
                cpu[one].append(time.process_time() - busy)
            if time.monotonic() > self._deadline:
                break
        seconds = statistics.median(wall["ours"])
        ratios = [theirs / ours for theirs, ours in zip(wall[name], wall["ours"], strict=True)]
        busy = [theirs / ours for theirs, ours in zip(cpu[name], cpu["ours"], strict=True)]
        return {
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "cpu_ratio": statistics.median(busy),
            "turns": len(ratios),
            "our_seconds": seconds,
            "their_seconds": statistics.median(wall[name]),
            "our_cpu_seconds": statistics.median(cpu["ours"]),
            "their_cpu_seconds": statistics.median(cpu[name]),
            "operations": operations,
            "tflops": operations / seconds / 1e12,
            "cpu_tflops": operations / statistics.median(cpu["ours"]) / 1e12,
            "our_bytes": self._our_bytes,
            "their_bytes": its_bytes,
            "difference": difference,
        }

    def _side(self, name: str) -> tuple[Run, int | None]:
        """Return an implementation, and the memory that it needs if that is known."""
        if name == "eager":
            return self._peer.eager(), None
        if name == "compile":
            return self._peer.compiled(), None
        side, program_bytes = run(self._task, self._sizes, self._args.steps, self._params, VARIANTS[name])
        return side, None if jax.default_backend() == "cpu" else program_bytes


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest difference of two outputs in standard deviations; for a single number, the relative one."""
    scale = theirs.std() if theirs.size > 1 else np.abs(theirs).max()
    return float(np.abs(ours - theirs).max() / scale)


def _ceiling(sizes: Sizes, threads: int, repeats: int = 5) -> float:
    """Return the TFLOP/s of a square matrix product, by the faster of JAX and torch."""
    side, dtype = sizes.matmul, sizes.transformer.dtype
    a, b = (jax.random.normal(jax.random.key(i), (side, side), dtype) for i in range(2))
    product = jax.jit(jnp.matmul)
    seconds = []
    for multiply in (lambda: product(a, b).block_until_ready(), matmul(side, dtype, threads)):
        multiply()
        for _ in range(repeats):
            start = time.perf_counter()
            multiply()
            seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds) / 1e12


def _peak_above(run: Run) -> int | None:
    """Return the peak resident memory of a call above that before it, in bytes; None if the kernel hides it."""
    status, clear = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")
    if not (status.exists() and clear.exists()):
        return None
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # so that memory freed by earlier calls is not resident
    kilobytes = lambda name: int(re.search(rf"{name}:\s+(\d+) kB", status.read_text())[1])
    before = kilobytes("VmRSS")
    clear.write_text("5")  # resets the peak
    run()
    return 1024 * (kilobytes("VmHWM") - before)


def _processor() -> str:
    """Return the name of the processor."""
    info = pathlib.Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor()
