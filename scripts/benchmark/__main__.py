# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Time uso_jax beside diffusers, transformers and PEFT: the same weights, shapes, dtype and cores, in one run.

    python scripts/benchmark/__main__.py                                  # small on CPU, FLUX.1-dev's size on a GPU
    python scripts/benchmark/__main__.py --only step,lora --repeats 11 --json speed.json
    python scripts/benchmark/__main__.py --seconds 540 --json gpu.json    # what is measured by then; the file grows
    python scripts/benchmark/__main__.py --size full --dry_run            # list the tasks without running them

A ratio above 1 means that uso_jax is faster. The sides take turns, so other load on the machine slows both. Beside
torch, uso_jax is compared with itself: with a mask, with adapters beside the weights, with quantised kernels, and with
flags of XLA. Tasks of one network share its weights.
"""

from uso_jax.hardware.malloc import keep_memory

if __name__ == "__main__":
    keep_memory()  # for both sides, as training has it; before anything slow is imported: it starts the program again

import argparse
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from uso_jax.common import atomic_files
from uso_jax.common.errors import InputError, exit_cleanly

if TYPE_CHECKING:
    from tasks import Sizes

sys.path.append(str(pathlib.Path(__file__).parents[2]))  # the checkout, for convert
PEERS = ("torch", "diffusers", "transformers", "peft")
_COLUMNS = (
    "task", "beside", "ratio", "busy", "ours, s", "theirs, s", "TFLOP/s", "share", "ours, GiB", "theirs, GiB",
    "difference",
)  # fmt: skip
TASKS = {
    "step": "transformer, one sampling step",
    "lora": "adapters, training step with AdamW",
    "decode": "autoencoder, latents to image",
    "siglip": "SigLIP vision tower",
    "sample": "transformer, all sampling steps",
}


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    """Time the chosen tasks, print the table and write the file. User errors end with exit code 2."""
    args = _arguments(argv)
    missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
    advice = f"not installed: {', '.join(missing)}, which uso_jax is compared with; pip install 'uso_jax[benchmark]'"
    if missing and not args.dry_run:
        raise InputError(advice)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs a part of a GPU's memory too
    import jax
    from tasks import SIZES, describe, variants_of

    size = args.size if args.size != "auto" else "full" if jax.default_backend() == "gpu" else "small"
    print(_heading(size, SIZES[size]))
    operations = {}
    for task in args.only:
        num, operations[task] = describe(task, SIZES[size], args.steps)
        print(f"  {task:<8} {TASKS[task]:<52}{num / 1e6:>10,.1f} M parameters{operations[task] / 1e12:>11,.3f} TFLOP")
        if args.variants and (names := variants_of(task)):
            print(f"{'':<11}also {', '.join(names)}")
    if args.dry_run:
        print(advice if missing else "Nothing is missing.")
        return
    from turns import measure

    def keep(report: dict) -> None:
        if args.json:
            with atomic_files.explained(f"--json {args.json}", "choose another file"):
                atomic_files.write_file(args.json, json.dumps(report, indent=2) + "\n")

    report = measure(args.only, size, operations, args, keep)
    keep(report)
    print(_table(report))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("auto", "full", "small", "tiny"), default="auto", help="of the networks")
    parser.add_argument("--only", metavar="A,B,...", default=",".join(TASKS), help="tasks; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each side; default: %(default)s")
    parser.add_argument("--steps", type=int, default=25, help="of the whole sampling; default: %(default)s")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile as well")
    parser.add_argument("--variants", action=argparse.BooleanOptionalAction, default=True, help="our own ones as well")
    parser.add_argument("--seconds", type=int, default=0, help="start nothing more after these; default: no limit")
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, help="also write the figures to this file")
    parser.add_argument("--dry_run", action="store_true", help="list the tasks without running them")
    args = parser.parse_args(argv)
    args.only = args.only.split(",")
    if unknown := [task for task in args.only if task not in TASKS]:
        raise InputError(f"--only {','.join(unknown)}: unknown task; use some of {', '.join(TASKS)}")
    for name, least in (("repeats", 1), ("steps", 1), ("seconds", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} must be at least {least}, not {getattr(args, name)}")
    if args.json and not args.json.absolute().parent.is_dir():
        raise InputError(f"--json {args.json}: {args.json.parent} does not exist; create it first")
    return args


def _heading(size: str, sizes: "Sizes") -> str:
    import jax

    c, (rows, columns), (more_rows, more_columns) = sizes.transformer, sizes.target, sizes.reference
    return (
        f"{size} on {jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores: width {c.hidden_size}, "
        f"{c.depth} double and {c.depth_single_blocks} single blocks, {c.dtype}, {sizes.tokens} tokens "
        f"(text {sizes.text}, target {rows} x {columns}, reference {more_rows} x {more_columns}), rank {sizes.rank}"
    )


def _table(report: dict) -> str:
    ceiling, columns = report["matmul_tflops"], _COLUMNS
    lines = [
        "",
        "ratio: the other's time over ours, median of the turns (smallest - largest), and of all cores' busy time;",
        f"TFLOP/s, and share of what a square product reaches here, {ceiling:.3f}: ours; memory: {report['memory']};",
        "difference: of the outputs, in their standard deviations (of a training step: of the loss, relatively).",
        "",
        f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}",
    ]
    for row in report["rows"]:
        cells = [row["task"], row["peer"]]
        if "failed" in row:
            cells += [f"failed: {row['failed'][:80]}"] + [""] * (len(columns) - 3)
        else:
            low, high = row["ratio_range"]
            cells += [f"**{row['ratio']:.2f}** ({low:.2f} - {high:.2f})", f"{row['cpu_ratio']:.2f}"]
            cells += [f"{row[name]:.4g}" for name in ("our_seconds", "their_seconds")]
            cells += [f"{row['tflops']:.3f}", f"{row['tflops'] / ceiling:.0%}"]
            cells += ["-" if row[name] is None else f"{row[name] / 2**30:.2f}" for name in ("our_bytes", "their_bytes")]
            cells.append(f"{row['difference']:.0e}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
