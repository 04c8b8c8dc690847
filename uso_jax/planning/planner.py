# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Planning of training and sampling on devices that are not attached: memory, FLOPs, communication, time.

Programs are compiled by the device's compiler, so memory and communication are those of the real run. FLOPs are counted
in the jaxpr. Time is a roofline bound, the maximum of the arithmetic, memory and network times at peak rates. If a
program does not fit, changes of the command are suggested, with estimates of the memory they need.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import jax
from jax.sharding import Mesh

from uso_jax.common.errors import InputError
from uso_jax.hardware import flops
from uso_jax.hardware.chips import Slice
from uso_jax.parallel import sharding
from uso_jax.planning import programs
from uso_jax.planning.memory import compile_program
from uso_jax.planning.programs import Choices, Program
from uso_jax.training.config import TrainConfig
from uso_jax.training.stage import StageConfig

Report = dict[str, Any]  # JSON; docs/plan.md describes every key
Progress = Callable[[str], Any]  # receives a description of the current step


def plan_programs(
    config: TrainConfig, target: Slice, choices: Choices, progress: Progress = lambda what: None
) -> list[Report]:
    """Compile the programs of a mode for a slice and return a report for each.

    Args:
      config: configuration of the run.
      target: devices to compile for.
      choices: what to plan.
      progress: called before each compilation.

    Raises:
      InputError: the mesh does not match the slice, or the batch does not match the mesh.
    """
    mesh, wanted = programs.build_programs(config, target.devices, choices)
    executed = _count(config.with_numerics(attention="xla"), target, choices)
    needed = _count(config.with_numerics(attention="xla", remat="none"), target, choices)
    reports = []
    for program in wanted:
        progress(f"Compiling the {program.name} for {target.name}")
        report = _facts(config, target, mesh, choices, program)
        report |= {"model_flops": needed[program.name], "executed_flops": executed[program.name]}
        report |= compile_program(program, mesh, target.chip, choices.quick)
        report["roofline"] = _roofline(report, target)
        report["roofline_ms"] = 1000 * report["roofline"].get("seconds", 0.0)
        report["suggestions"] = [] if report["fits"] else suggest(config, target, choices, program, report)
        reports.append(report)
    return reports


def find_largest_batch(
    config: TrainConfig, target: Slice, choices: Choices, progress: Progress = lambda what: None
) -> tuple[Report, int]:
    """Return the report of the largest batch that fits, and the batch; (a report that does not fit, 0) if none does.

    Training steps are planned without gradient accumulation. Memory grows almost linearly with the batch, so two small
    batches predict the largest, and few further compilations confirm it.

    Raises:
      InputError: the mode has several programs, or the mesh does not match the slice.
    """
    if choices.mode == "encode-parts":
        raise InputError("--search needs one program; use --mode sample, train or reward")
    stage = programs.choose_stage(config, choices)
    mesh = sharding.make_mesh(config.mesh, list(target.devices))
    data_shards, limit = mesh.shape["data"] * mesh.shape["fsdp"], target.chip.usable_bytes
    known: dict[int, Report] = {}  # by images per shard of the batch

    def total(each: int) -> int:
        progress(f"Trying a batch of {each * data_shards}")
        sized = programs.with_stage(config, dataclasses.replace(stage, batch_size=each * data_shards, accumulate=1))
        known[each] = plan_programs(sized, target, dataclasses.replace(choices, batch=each * data_shards))[-1]
        return known[each]["total_bytes"]

    low, high, guess = 0, math.inf, 1  # the largest that fits, the smallest that does not
    while high - low > 1:
        low, high = (guess, high) if total(guess) <= limit else (low, guess)
        one, other = sorted(known, key=lambda each: abs(each - low))[:2] if len(known) > 1 else (guess, guess)
        slope = (known[one]["total_bytes"] - known[other]["total_bytes"]) / (one - other) if one != other else 0
        predicted = int(one + (limit - known[one]["total_bytes"]) / slope) if slope > 0 else 2 * guess
        guess = max(min(predicted, high - 1, 8 * max(low, 1)), low + 1)
    return known[low or 1], low * data_shards


def _count(config: TrainConfig, target: Slice, choices: Choices) -> dict[str, float]:
    mesh, traced = programs.build_programs(config, target.devices, choices)
    with jax.set_mesh(mesh):
        return {one.name: flops.count_flops(one, *one.arguments, loops=one.loops) for one in traced}


def _facts(config: TrainConfig, target: Slice, mesh: Mesh, choices: Choices, program: Program) -> Report:
    stage = programs.choose_stage(config, choices)
    training = choices.mode in ("train", "reward")
    return {
        "program": program.name,
        "config": config.variant,
        "mode": choices.mode,
        "stage": stage.name,
        "topology": target.name,
        "devices": len(target.devices),
        "mesh": dict(mesh.shape),
        "batch": stage.batch_size if training else choices.batch or mesh.shape["data"] * mesh.shape["fsdp"],
        "accumulate": stage.accumulate if training else 1,
        "target_size": list(stage.target_size),
        "tokens": tokens(config, stage, 1 if training else choices.references),
        "quantization": choices.quantization,
        "quantize_activations": choices.quantize_activations,
        "merged": programs.merges(choices),
        "remat": config.system.transformer.remat if training else "",
        "offload": choices.offload and not training,
        "tile": choices.tile,
        "quick": choices.quick,
        "versions": {name: _version(name) for name in ("jax", "jaxlib", "libtpu")},
    }


def tokens(config: TrainConfig, stage: StageConfig, references: int = 1) -> int:
    """Return the length of the transformer's sequence in tokens, with a number of content images."""
    side = config.system.pixels_per_token
    area = lambda size: math.prod(n // side for n in size)
    projector = config.system.transformer.projector
    if config.system.style_encoder == "autoencoder":
        style = config.data.num_styles * area(config.style_size(stage))
    else:
        style = config.data.num_styles * projector.tokens_per_image if projector else 0
    return (
        config.system.text.num_tokens
        + area(stage.target_size)
        + (references * area(stage.content_size) if "content" in stage.conditions else 0)
        + (style if "style" in stage.conditions else 0)
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


# ---------------------------------------------------------------------------------------------------- time


def _roofline(report: Report, target: Slice) -> Report:
    """Return lower bounds in seconds for arithmetic, memory and network; at best they overlap."""
    chip = target.chip
    if chip.bf16_flops is None:
        return {}
    # Arguments are read once, results written once, temporaries both.
    moved = report["argument_bytes"] + report["output_bytes"] + 2 * report["temporary_bytes"]
    peak = (chip.int8_ops or chip.bf16_flops) if report["quantize_activations"] else chip.bf16_flops
    sent = sum(one["sent_bytes"] for one in report["collectives"].values())
    seconds = {
        "arithmetic": report["executed_flops"] / len(target.devices) / peak,
        "memory": moved / chip.memory_bandwidth,
        "network": sent / chip.network_bandwidth,
    }
    bound = max(seconds, key=seconds.__getitem__)
    return {"seconds": seconds[bound], "bound": bound} | {f"{name}_seconds": value for name, value in seconds.items()}


def suggest(
    config: TrainConfig, target: Slice, choices: Choices, program: Program, report: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return changes of the command with estimated memory, smallest first.

    Arguments are counted exactly and temporaries are scaled from this program's, so a suggestion may not fit either.
    """
    found = []
    for what, changed, chosen, share in _changes(config, target, choices):
        try:
            _, programs_ = programs.build_programs(changed, target.devices, chosen)
        except InputError:
            continue
        other = next(one for one in programs_ if one.name == program.name)
        arguments = programs.device_bytes(other.arguments) + programs.device_bytes(other.besides)
        total = arguments + int(share * report["temporary_bytes"])
        found.append({"change": what, "estimated_bytes": total, "estimated_fits": total <= target.chip.usable_bytes})
    return sorted(found, key=lambda one: one["estimated_bytes"])


def _changes(config: TrainConfig, target: Slice, choices: Choices) -> Iterator[tuple[str, TrainConfig, Choices, float]]:
    stage, training = programs.choose_stage(config, choices), choices.mode in ("train", "reward")
    mesh, count = sharding.make_mesh(config.mesh, list(target.devices)).shape, len(target.devices)
    data_shards = mesh["data"] * mesh["fsdp"]
    each = (stage.batch_size // stage.accumulate if training else choices.batch or data_shards) // data_shards
    with_ = lambda **changes: dataclasses.replace(choices, **changes)
    if each > 1:
        alone = programs.with_stage(config, dataclasses.replace(stage, accumulate=1))
        yield f"--batch {data_shards}", alone, with_(batch=data_shards), 1 / each
    if each > 1 and training:
        more = stage.accumulate * each
        flag = f"--config.stages.{stage.name}.accumulate={more}"
        yield flag, programs.with_stage(config, dataclasses.replace(stage, accumulate=more)), choices, 1 / each
    remat = config.system.transformer.remat
    for other, share in (("full", 0.5), ("offload", 0.8 if remat == "full" else 0.4)) if training else ():
        if remat not in (other, "offload"):
            yield (
                f"--config.model.transformer.remat={other}",
                config.with_numerics(remat=other),
                choices,
                share,
            )
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
            share = (
                batch
                / shape["fsdp"]
                / (each * data_shards * stage.accumulate if training else each * data_shards)
                * data_shards
            )
            words = " ".join(f"--config.mesh.{axis}={size}" for axis, size in shape.items())
            changed = dataclasses.replace(config, mesh=shape)
            yield words, changed, with_(batch=batch), share * mesh["tensor"] / tensor
