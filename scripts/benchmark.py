# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Time uso_jax beside diffusers, transformers and PEFT: the same weights, shapes, dtype and cores, in one run.

    python scripts/benchmark.py                                  # small on CPU, FLUX.1-dev's size on a GPU
    python scripts/benchmark.py --only step,lora --repeats 11 --json speed.json
    python scripts/benchmark.py --size full --dry_run            # what would be run, without running it

A ratio above 1 means that uso_jax is faster. The sides take turns, so what else the machine does slows both.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

PEERS = ("torch", "diffusers", "transformers", "peft")
TASKS = ("step", "sample", "lora", "decode", "siglip")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("auto", "full", "small", "tiny"), default="auto")
    parser.add_argument("--only", metavar="A,B,...", default=",".join(TASKS), help="tasks; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each side; default: %(default)s")
    parser.add_argument("--steps", type=int, default=25, help="of the whole sampling; default: %(default)s")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="also torch.compile")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--dry_run", action="store_true", help="print what would be run")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Time what was asked for, print the table, and write the file; mistakes of the user end with exit code 2."""
    args = _arguments(argv)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with torch
    from uso_jax.errors import exit_cleanly

    exit_cleanly(_run)(args)


def _run(args: argparse.Namespace) -> None:
    from uso_jax.errors import InputError

    only = args.only.split(",")
    if unknown := [task for task in only if task not in TASKS]:
        raise InputError(f"--only {','.join(unknown)}: tasks are {', '.join(TASKS)}")
    for name in ("repeats", "steps"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.json and not pathlib.Path(args.json).absolute().parent.is_dir():
        raise InputError(f"--json {args.json}: there is no folder {pathlib.Path(args.json).parent}; make it first")
    missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
    if missing and not args.dry_run:
        raise InputError(
            f"{', '.join(missing)} not installed, which uso_jax is compared with; pip install 'uso_jax[benchmark]'"
        )
    import jax

    from benchmark_tasks import SIZES, describe

    size = {"gpu": "full", "cpu": "small"}[jax.default_backend()] if args.size == "auto" else args.size
    sizes = SIZES[size]
    print(_heading(size, sizes))
    operations = {}
    for task in only:
        num, operations[task] = describe(task, sizes, args.steps)
        print(f"  {task:<8}{num / 1e6:>10,.1f} M parameters{operations[task] / 1e12:>12,.3f} TFLOP")
    if args.dry_run:
        print(f"missing: {', '.join(missing)}; pip install 'uso_jax[benchmark]'" if missing else "nothing is missing")
        return
    from benchmark_turns import measure

    report = measure(only, size, operations, args)
    print(_table(report))
    if args.json:
        from uso_jax import whole_file

        with whole_file.explained(f"--json {args.json}", "choose another file"):
            whole_file.write(pathlib.Path(args.json), json.dumps(report, indent=2) + "\n")


def _heading(size: str, sizes) -> str:
    import jax

    c, (rows, columns), (more_rows, more_columns) = sizes.transformer, sizes.target, sizes.reference
    return (
        f"{size} on {jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores: width {c.hidden_size}, "
        f"{c.depth} double and {c.depth_single_blocks} single blocks, {c.dtype}, {sizes.tokens} tokens "
        f"(text {sizes.text}, target {rows} x {columns}, reference {more_rows} x {more_columns}), rank {sizes.rank}"
    )


def _table(report: dict) -> str:
    ceiling = report["matmul_tflops"]
    lines = [
        "",
        "ratio: their time over ours, median of the turns (smallest - largest); TFLOP/s and share of the ceiling: ours;",
        f"ceiling: a square product reaches {ceiling:.3f} TFLOP/s; memory: {report['memory']}",
        "",
        "| task | peer | ratio | turns | CPU time | ours, s | theirs, s | TFLOP/s | share | memory, GB | theirs, GB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        if "failed" in row:
            lines.append(f"| {row['task']} | {row['peer']} | failed: {row['failed']} |{' |' * 8}")
            continue
        low, high = row["ratio_range"]
        memory = " | ".join("-" if x is None else f"{x / 1e9:.2f}" for x in (row["our_bytes"], row["their_bytes"]))
        lines.append(
            f"| {row['task']} | {row['peer']} | **{row['ratio']:.2f}** | {low:.2f} - {high:.2f} | {row['cpu_ratio']:.2f} "
            f"| {row['our_seconds']:.4g} | {row['their_seconds']:.4g} | {row['tflops']:.3f} "
            f"| {row['tflops'] / ceiling:.0%} | {memory} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
