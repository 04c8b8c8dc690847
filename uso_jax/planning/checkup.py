# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Examine a configuration on this machine: settings, data, weights, devices, memory. Nothing is read or allocated."""

from collections.abc import Iterator

import jax

from uso_jax.common.errors import InputError
from uso_jax.hardware.chips import GIB
from uso_jax.parallel import sharding
from uso_jax.planning import machine, programs
from uso_jax.planning.finding import Finding, check
from uso_jax.training import precompute, preflight
from uso_jax.training.config import TrainConfig


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
        yield fit(config)


def fit(config: TrainConfig) -> Finding:
    """Compare what a training step holds on a device before it computes with the device's memory."""
    device = jax.local_devices()[0]
    limit = machine.device_bytes(device)
    _, (program,) = programs.build_programs(config, jax.devices(), programs.Choices("train"))
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


def _data(config: TrainConfig) -> str:
    path = config.data.train.get("path")
    return f"{config.data.source}{f' at {path}' if path else ''}"
