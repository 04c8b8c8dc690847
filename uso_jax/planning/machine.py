# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Examine the machine: versions, extras, devices, memory, disk and the token for gated downloads. No network."""

import glob
import importlib.util
import os
import pathlib
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata

import jax
from packaging.requirements import Requirement

from uso_jax.common import extras
from uso_jax.hardware.chips import GIB, peak_flops
from uso_jax.planning.finding import Finding

SHARED_MEMORY = "/dev/shm"
_LITTLE_SHARED = GIB // 4  # a container's default is 64 MiB
_LITTLE_DISK = 2 * GIB
_ACCELERATORS = {  # device files -> (what they are, extra that drives them)
    "/dev/accel[0-9]*": ("a TPU", "tpu"),
    "/dev/vfio/[0-9]*": ("a TPU", "tpu"),
    "/dev/nvidia[0-9]*": ("an NVIDIA GPU", "cuda"),
}


def examine(folder: pathlib.Path, downloads: bool = True) -> Iterator[Finding]:
    """Yield findings about this machine.

    Args:
      folder: where runs will write.
      downloads: whether weights may have to be downloaded, for which some hubs want a token.
    """
    yield from versions()
    yield from missing_extras()
    yield devices()
    yield memory()
    yield from shared_memory()
    yield disk(folder)
    if downloads:
        yield token()


def versions(package: str = "uso_jax") -> Iterator[Finding]:
    """Compare the installed packages with what this one requires."""
    needed = [Requirement(text) for text in metadata.requires(package) or ()]
    wrong = []
    for one in needed:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{one.name} is missing (needs {one.specifier or 'any version'})")
            continue
        if not one.specifier.contains(found, prereleases=True):
            wrong.append(f"{one.name} is {found} (needs {one.specifier})")
    what = f"Python {platform.python_version()}, jax {jax.__version__}, {package} {metadata.version(package)}"
    if wrong:
        remedy = "install again: pip install --upgrade uso_jax, and restart a notebook's kernel"
        yield Finding("versions", "problem", f"{what}; {'; '.join(wrong)}", remedy)
    else:
        yield Finding("versions", "ok", what)


def missing_extras() -> Iterator[Finding]:
    """Name the extras that are not installed; what they serve says so itself when it is used."""
    absent = [
        name for name, modules in extras.EXTRAS.items() if any(importlib.util.find_spec(m) is None for m in modules)
    ]
    if absent:
        remedy = f"if you need them: pip install 'uso_jax[{','.join(absent)}]'"
        yield Finding("extras", "note", f"not installed: {', '.join(absent)}", remedy)
    else:
        yield Finding("extras", "ok", f"installed: {', '.join(extras.EXTRAS)}")


def devices() -> Finding:
    """Describe JAX's devices, and an accelerator that it does not use."""
    try:
        found = jax.local_devices()
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Finding("devices", "problem", f"JAX finds none: {reason}", "unset JAX_PLATFORMS, or install a driver")
    first = found[0]
    limit = device_bytes(first)
    each = f", {limit / GIB:.2f} GiB each" if limit else ""
    text = f"{len(found)} x {first.device_kind}{each}"
    if first.platform == "cpu":
        for pattern, (what, extra) in _ACCELERATORS.items():
            if glob.glob(pattern):
                remedy = f"pip install 'uso_jax[{extra}]', and unset JAX_PLATFORMS"
                return Finding("devices", "problem", f"{text}, although this machine has {what}", remedy)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return Finding("devices", "ok", f"{text}, {cores} cores; enough for mini, not for FLUX.1")
    peak = peak_flops(first.device_kind)
    return Finding("devices", "ok", text + (f", {peak / 1e12:.0f} TFLOP/s in bfloat16" if peak else ""))


def device_bytes(device: jax.Device) -> int | None:
    """Return the memory of a device in bytes, of a CPU its share of the host's; None if unknown."""
    if device.platform == "cpu":
        return host_bytes()[0] // max(len(jax.local_devices()), 1)
    return (device.memory_stats() or {}).get("bytes_limit")


def memory() -> Finding:
    """Describe the host's memory, or the container's where that is less."""
    total, free = host_bytes()
    text = f"{total / GIB:.1f} GiB, {free / GIB:.1f} available"
    if free < 2 * GIB:
        return Finding("memory", "note", text, "mini needs about 2 GiB; end other programs")
    return Finding("memory", "ok", text)


def host_bytes() -> tuple[int, int]:
    """Return total and available host memory in bytes, limited by a container's."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().split("\n")
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        pass  # not Linux
    try:
        limit = int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(pathlib.Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return total, free
    return min(total, limit), min(free, max(limit - used, 0))


def shared_memory(path: str = SHARED_MEMORY) -> Iterator[Finding]:
    """Warn of little shared memory, through which reading workers pass images."""
    if sys.platform == "linux" and os.path.isdir(path):
        size = shutil.disk_usage(path).total
        if size < _LITTLE_SHARED:
            remedy = "run the container with --shm-size=2g, or train with --config.data.num_workers=0"
            yield Finding("shared memory", "note", f"{path} has {size / 2**20:.0f} MiB", remedy)


def disk(folder: pathlib.Path) -> Finding:
    """Describe the free disk space where a run will write."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        return Finding("disk", "problem", f"{there} is not writable", "choose another folder")
    free = shutil.disk_usage(there).free
    text = f"{free / GIB:.1f} GiB free at {there}"
    if free < _LITTLE_DISK:
        return Finding("disk", "note", text, "checkpoints of mini take 20 MiB each, of FLUX.1's adapters 3 GiB")
    return Finding("disk", "ok", text)


def token() -> Finding:
    """Say whether gated weights can be downloaded. The token itself is not shown, and not tested."""
    from huggingface_hub import get_token

    if get_token():
        return Finding("hub token", "ok", "present")
    return Finding("hub token", "note", "none; FLUX.1-dev is gated", "accept its licence, then: hf auth login")
