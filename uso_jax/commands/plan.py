# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Estimate the memory and time of training or sampling on a TPU slice, without having one (docs/plan.md).

    uso-plan --config configs/uso.py:flux_dev --mode sample --quantization int8 --offload
    uso-plan --config configs/uso.py:flux_dev --topology v6e:2x4 --mode train --search
    uso-plan --table plans/*.json
    uso-plan --compare before.json after.json

It compiles the real program with the TPU's compiler: pip install 'uso_jax[tpu]'.
"""

import json
import pathlib

from absl import app, flags

from uso_jax.common import atomic_files, config_flag, progress, untrusted
from uso_jax.common.errors import InputError, exit_cleanly
from uso_jax.hardware import chips
from uso_jax.planning import planner, programs
from uso_jax.planning import report as plan_words

_CONFIG = config_flag.define(__name__)
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:1x1", "Chip and slice, such as v5e:4x4, v6e:2x4, v5p:2x2x1; cpu:8.")
_MODE = flags.DEFINE_enum(
    "mode", "sample", programs.PROGRAMS, "Programs to plan: those of a sampling step, a training step ..."
)
_STAGE = flags.DEFINE_string("stage", "", "Stage of the configuration; default: the last of its run.")
_BATCH = flags.DEFINE_integer("batch", 0, "Images over all devices; default: the stage's, or one where it is split.")
_QUANTIZATION = flags.DEFINE_string("quantization", "", "Plan with kernels quantised to int8, fp8 or int4.")
_QUANTIZE_ACTIVATIONS = flags.DEFINE_bool(
    "quantize_activations", False, "Sampling with products in the 8 bits of --quantization."
)
_TILE = flags.DEFINE_integer("tile", None, "Decode images in tiles of this many pixels a side.")
_OFFLOAD = flags.DEFINE_bool("offload", False, "Sampling with unused networks in host memory.")
_REFERENCES = flags.DEFINE_integer("references", 1, "Sampling with this many content images.", lower_bound=1)
_MERGE = flags.DEFINE_bool("merge", None, "Sampling with merged adapters; default: unless the weights are quantised.")
_QUICK = flags.DEFINE_bool("quick", False, "Compile with the least effort: much faster, but memory is an estimate.")
_SEARCH = flags.DEFINE_bool("search", False, "Find the largest batch that fits.")
_JSON = flags.DEFINE_string("json", None, "File to write the reports to.")
_COMPARE = flags.DEFINE_string("compare", None, "Show the estimated times of a written report beside the new ones.")
_TABLE = flags.DEFINE_bool("table", False, "Print the reports of files written with --json as a Markdown table.")


def main() -> None:
    """Parse the command line and run the command. User errors end with exit code 2."""
    app.run(_run, flags_parser=config_flag.parse)


@exit_cleanly
def _run(argv: list[str]) -> None:
    """Plan, print, and write what was asked for."""
    if _TABLE.value:
        print(plan_words.table([report for name in argv[1:] for report in _read(name)]))
        return
    old = None if _COMPARE.value is None else _read(_COMPARE.value)
    if old is not None and argv[1:]:
        print(_compared(old, [report for name in argv[1:] for report in _read(name)]))
        return
    if old is not None and _QUICK.value:
        raise InputError("--compare needs estimated times, which --quick does not have; plan without it")
    if _JSON.value:
        with atomic_files.explained(f"--json {_JSON.value}", "choose another file"):
            atomic_files.probe(pathlib.Path(_JSON.value))
    config, where = _CONFIG.value, chips.find_slice(_TOPOLOGY.value)
    choices = programs.Choices(
        mode=_MODE.value,
        stage=_STAGE.value,
        batch=_BATCH.value,
        quantization=_QUANTIZATION.value,
        quantize_activations=_QUANTIZE_ACTIVATIONS.value,
        tile=_TILE.value,
        offload=_OFFLOAD.value,
        references=_REFERENCES.value,
        merge=_MERGE.value,
        quick=_QUICK.value,
    )
    with progress.phase(f"tracing the programs of {config.variant}") as shown:
        if _SEARCH.value:
            report, largest = planner.find_largest_batch(config, where, choices, shown.describe)
            reports = [report]
        else:
            reports = planner.plan_programs(config, where, choices, shown.describe)
    print("\n".join(map(plan_words.describe, reports)))
    if _SEARCH.value:
        print(f"  largest batch    {largest}" if largest else "  not even the smallest batch fits")
    if old is not None:
        print(_compared(old, reports))
    if _JSON.value:
        _write(pathlib.Path(_JSON.value), reports)


def _compared(old: list[planner.Report], new: list[planner.Report]) -> str:
    if not (found := plan_words.compare(old, new)):
        raise InputError(
            f"--compare {_COMPARE.value} has no estimated time of the same program, topology, mesh, batch and tokens;"
            " plan both alike, without --quick"
        )
    return found


def _read(name: str) -> list[planner.Report]:
    remedy = "it is not a file that plan.py --json has written"
    reports = untrusted.json(pathlib.Path(name), list[dict], missing=f"{name} does not exist", remedy=remedy)
    try:
        plan_words.table(reports), plan_words.compare(reports, reports)
        return reports
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{name} is not a file that plan.py --json has written") from error


def _write(path: pathlib.Path, reports: list[planner.Report]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_files.write_file(path, json.dumps(reports, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"cannot write --json {path}: {error.strerror}") from error
