# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Measurements of the benchmark. Both sides take turns, so that other load on the machine slows both."""

import argparse
import ctypes
import gc
import os
import pathlib
import platform
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
from tasks import SIZES, Run, Sizes, run
from torch_peer import Peer, matmul

from uso_jax.common import progress


def measure(tasks: Sequence[str], size: str, operations: Mapping[str, float], args: argparse.Namespace) -> dict:
    """Measure all tasks. Return the report that scripts/benchmark/__main__.py prints and writes with --json."""
    sizes, threads = SIZES[size], len(os.sched_getaffinity(0))
    on_cpu = jax.default_backend() == "cpu"
    rows = []
    with progress.bar(total=len(tasks) * args.repeats, unit="turn") as bar:
        ceiling = _ceiling(sizes, threads)
        for task in tasks:
            bar.describe(task)
            rows += _Match(task, sizes, args, threads).rows(operations[task], bar)
            gc.collect()  # before the next networks are created
    return {
        "size": size,
        "device": _processor() if on_cpu else jax.devices()[0].device_kind,
        "threads": threads,
        "tokens": sizes.tokens,
        "dtype": sizes.transformer.dtype,
        "steps": args.steps,
        "repeats": args.repeats,
        "versions": {name: version(name) for name in ("jax", "torch", "diffusers", "transformers", "peft")},
        "matmul_tflops": ceiling,
        "memory": "resident set above what it was before the call" if on_cpu else "device, weights included",
        "rows": rows,
    }


class _Match:
    """One task and all implementations of it."""

    def __init__(self, task: str, sizes: Sizes, args: argparse.Namespace, threads: int):
        self._task, self._repeats = task, args.repeats
        peer = Peer(task, sizes, args.steps, threads)
        ours, program_bytes = run(task, sizes, args.steps, peer.weights())
        self._sides, self._failed = {"ours": ours, "eager": peer.eager()}, []
        self._difference = _difference(ours(), self._sides["eager"]())
        if args.compile:
            try:
                compiled = peer.compiled()
                compiled()
                self._sides["compile"] = compiled
            except Exception as error:  # if torch's compiler fails, only this row fails
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                self._failed.append({"task": task, "peer": "compile", "failed": reason})
        self._bytes = {}
        for name, side in self._sides.items():
            on_device = peer.peak_bytes(side)
            self._bytes[name] = _peak_above(side) if on_device is None else on_device
        if jax.default_backend() != "cpu":
            self._bytes["ours"] = program_bytes

    def rows(self, operations: float, bar: progress.Bar) -> list[dict]:
        """Run the sides in turns, every second time in reverse order, and return the rows of the table."""
        wall, cpu = ({name: [] for name in self._sides} for _ in range(2))
        for turn in range(self._repeats):
            for name in list(self._sides)[:: 1 if turn % 2 == 0 else -1]:
                seconds, busy = time.perf_counter(), time.process_time()
                self._sides[name]()
                wall[name].append(time.perf_counter() - seconds)
                cpu[name].append(time.process_time() - busy)
            bar.update()
        seconds = statistics.median(wall["ours"])
        rows = []
        for name in list(self._sides)[1:]:
            ratios = [theirs / ours for theirs, ours in zip(wall[name], wall["ours"], strict=True)]
            busy = [theirs / ours for theirs, ours in zip(cpu[name], cpu["ours"], strict=True)]
            figures = {
                "ratio": statistics.median(ratios),
                "ratio_range": [min(ratios), max(ratios)],
                "cpu_ratio": statistics.median(busy),
                "our_seconds": seconds,
                "their_seconds": statistics.median(wall[name]),
                "our_cpu_seconds": statistics.median(cpu["ours"]),
                "their_cpu_seconds": statistics.median(cpu[name]),
                "operations": operations,
                "tflops": operations / seconds / 1e12,
                "cpu_tflops": operations / statistics.median(cpu["ours"]) / 1e12,
                "our_bytes": self._bytes["ours"],
                "their_bytes": self._bytes[name],
                "difference": self._difference,
            }
            rows.append({"task": self._task, "peer": name} | figures)
        return rows + self._failed


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
