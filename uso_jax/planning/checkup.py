# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Examine a configuration on this machine: settings, data, weights, devices, memory, time. Nothing is loaded."""

import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from uso_jax.common import progress
from uso_jax.common.errors import InputError
from uso_jax.hardware import chips, flops
from uso_jax.hardware.chips import GIB
from uso_jax.parallel import sharding
from uso_jax.planning import machine, programs
from uso_jax.planning.finding import Finding, check
from uso_jax.training import precompute, preflight
from uso_jax.training.config import TrainConfig

_SIDE = 1024  # of the matrices that measure a device


def examine(config: TrainConfig) -> Iterator[Finding]:
    """Yield findings about a run with this configuration; every check of `preflight` is made, not only the first."""
    stages = ", ".join(f"{stage.name} {stage.steps} x {stage.batch_size}" for stage in config.run_stages)
    settings = check("settings", f"{config.variant}: {stages}", preflight.check_settings, config)
    yield settings
    yield check("data", _data(config), preflight.check_data, config)
    if settings.state == "problem":
        return  # networks cannot be described from wrong settings
    yield check("features", "fit this run, or are not used", preflight.check_features, config)
    try:
        mesh = sharding.make_mesh(config.mesh)
    except (InputError, RuntimeError) as error:  # JAX raises the latter where it finds no device
        yield Finding("mesh", "problem", (str(error).splitlines() or [type(error).__name__])[0])
        return
    texts = {
        "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        "quantization": config.model.quantization or "none",
        "placement": "every parameter has a place",
        "weights": f"{config.model.weights}: all that the run needs" if config.model.weights else "from scratch",
    }
    checks = preflight.checks_of_networks(config, mesh, precompute.build_system(config))
    found = [check(subject, texts[subject], function) for subject, function in checks.items()]
    yield from found
    if all(one.state == "ok" for one in found if one.subject != "weights"):
        yield from estimate(config)


def estimate(config: TrainConfig) -> Iterator[Finding]:
    """Yield whether a run fits this machine's devices, and the least time that it takes; nothing is read."""
    traced = config.with_numerics(attention="xla")  # fused attention hides its operations
    build = lambda name: programs.build_programs(traced, jax.devices(), programs.Choices("train", name))
    steps = {stage.name: build(stage.name) for stage in config.run_stages}
    _, (*_, last) = steps[config.run_stages[-1].name]
    yield fit(last)
    needed = 0.0
    for stage in config.run_stages:
        mesh, found = steps[stage.name]
        with jax.set_mesh(mesh):
            for program in found:
                operations = flops.count_flops(program, *program.arguments, loops=program.loops)
                needed += stage.steps * program.per_step * operations
    yield time_bound(needed, sum(stage.steps for stage in config.run_stages))


def fit(program: programs.Program) -> Finding:
    """Compare what a training step holds on a device before it computes with the device's memory."""
    device = jax.local_devices()[0]
    limit = machine.device_bytes(device)
    held = programs.device_bytes(program.arguments) + programs.device_bytes(program.besides)
    text = f"weights, optimizer and batch take {held / GIB:.2f} GiB of a device"
    if limit is None:
        return Finding("fit", "note", f"{text}, whose memory is unknown")
    text += f" with {limit / GIB:.2f} GiB"
    plan = "uso-plan --mode train, with this --config, adds temporaries"
    if held > limit:
        remedy = "--config.model.quantization=int8 or int4, more devices (--config.mesh), or a smaller batch_size"
        return Finding("fit", "problem", text, f"{remedy}; {plan}")
    return Finding("fit", "ok" if held < 0.5 * limit else "note", text, "" if held < 0.5 * limit else plan)


def time_bound(needed: float, steps: int) -> Finding:
    """Return the least time of a run's train steps: their arithmetic at the peak of all devices.

    The rate of a device whose peak is unknown, such as a CPU's, is measured.

    Args:
      needed: operations of all steps, without those of rewards.
      steps: their number.
    """
    device = jax.devices()[0]
    peak = chips.peak_flops(device.device_kind)
    rate = peak * jax.device_count() if peak else _measured_flops(device)
    how = "peak" if peak else "measured rate"
    text = f"at least {progress.duration(needed / rate)}: {steps:,} steps of {_flops(needed / steps)} at a {how} of"
    return Finding("time", "ok", f"{text} {_flops(rate)}/s; compiling, reading and sampling come on top")


def _flops(number: float) -> str:
    size, unit = next((size, unit) for size, unit in ((1e12, "T"), (1e9, "G"), (0, "M")) if number >= size)
    return f"{number / (size or 1e6):.3g} {unit}FLOP"


def _measured_flops(device: jax.Device) -> float:
    """Return the rate of the fastest of a few matrix products."""
    matrix = jax.device_put(np.ones((_SIDE, _SIDE), np.float32), device)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * _SIDE**3 / min(seconds)


def _data(config: TrainConfig) -> str:
    path = config.data.train.get("path")
    return f"{config.data.source}{f' at {path}' if path else ''}"
