# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What might fit in place of a program that does not: changes of the command, with what they would take."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from uso_jax import programs, sharding
from uso_jax.chips import Slice
from uso_jax.config import TrainConfig
from uso_jax.errors import InputError
from uso_jax.programs import Choices, Program


def suggest(
    config: TrainConfig, where: Slice, choices: Choices, program: Program, report: dict[str, Any]
) -> list[dict[str, Any]]:
    """Estimate changes: arguments are counted, temporaries scaled from this program's, so a suggestion may fail too."""
    found = []
    for what, changed, chosen, share in _changes(config, where, choices):
        try:
            _, programs_ = programs.build(changed, where.devices, chosen)
        except InputError:
            continue
        other = next(one for one in programs_ if one.name == program.name)
        arguments = programs.device_bytes(other.arguments) + programs.device_bytes(other.besides)
        total = arguments + int(share * report["temporary_bytes"])
        found.append({"change": what, "estimated_bytes": total, "estimated_fits": total <= where.chip.usable_bytes})
    return sorted(found, key=lambda one: one["estimated_bytes"])


def _changes(config: TrainConfig, where: Slice, choices: Choices) -> Iterator[tuple[str, TrainConfig, Choices, float]]:
    stage, training = programs.choose_stage(config, choices), choices.mode in ("train", "reward")
    mesh, count = sharding.make_mesh(config.mesh, list(where.devices)).shape, len(where.devices)
    ways = mesh["data"] * mesh["fsdp"]
    each = (stage.batch_size // stage.accumulate if training else choices.batch or ways) // ways
    with_ = lambda **changes: dataclasses.replace(choices, **changes)
    if each > 1:
        alone = programs.with_stage(config, dataclasses.replace(stage, accumulate=1))
        yield f"--batch {ways}", alone, with_(batch=ways), 1 / each
    if each > 1 and training:
        more = stage.accumulate * each
        flag = f"--config.stages.{stage.name}.accumulate={more}"
        yield flag, programs.with_stage(config, dataclasses.replace(stage, accumulate=more)), choices, 1 / each
    remat = config.system.transformer.remat
    for other, share in (("full", 0.5), ("offload", 0.8 if remat == "full" else 0.4)) if training else ():
        if remat not in (other, "offload"):
            yield f"--config.model.transformer.remat={other}", programs.numerics(config, remat=other), choices, share
    if not training:
        modes = [""] if choices.quantization else ["", "int8", "int4"]
        for mode, offload in itertools.product(modes, (False, True)):
            flags = ["--offload"] * (offload and not choices.offload) + [f"--quantization {mode}"] * bool(mode)
            if flags and offload >= choices.offload:
                chosen = with_(quantization=mode or choices.quantization, offload=offload)
                yield " ".join(flags), config, chosen, 1.0
    for tensor in (1, 2, 4, 8):
        shape = {"data": 1, "fsdp": count // tensor, "sequence": 1, "tensor": tensor}
        if count % tensor == 0 and shape != dict(mesh):
            batch = stage.batch_size if training else shape["fsdp"]
            share = batch / shape["fsdp"] / (each * ways * stage.accumulate if training else each * ways) * ways
            words = " ".join(f"--config.mesh.{axis}={size}" for axis, size in shape.items())
            changed = dataclasses.replace(config, mesh=shape)
            yield words, changed, with_(batch=batch), share * mesh["tensor"] / tensor
