# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Join the evaluation tables of several runs: means and standard deviations over seeds, as Markdown.

    python scripts/compare.py "full=runs/full-*" "w/o SRL=runs/no_reward-*" --figures style_accuracy,content_accuracy

Each row is NAME=PATTERN of workdirs that have a summary.json. --table picks one of the run's tables, by default the
main one; --stage the state after a stage, by default the last. The rows before, target and copies are those of the
first run.
"""

import argparse
import glob
import json
import pathlib
import statistics
from collections.abc import Sequence

from uso_jax.errors import InputError, exit_cleanly

Figures = dict[str, float]


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    """Print the table; mistakes of the user end with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", metavar="NAME=PATTERN")
    parser.add_argument("--table", metavar="NAME", help="one of the run's tables; default: the main one")
    parser.add_argument("--stage", metavar="NAME", help="state after this stage; default: the last")
    parser.add_argument("--figures", metavar="A,B,...", help="default: all that the first row has")
    args = parser.parse_args(argv)
    rows = dict(_runs(row) for row in args.rows)
    first = next(iter(rows.values()))[0]
    known = {name: found for name, found in _table(first, args.table).items() if name != "after"}
    found = {name: [_after(run, args.table, args.stage) for run in runs] for name, runs in rows.items()}
    figures = args.figures.split(",") if args.figures else list(next(iter(found.values()))[0])
    print(f"| | runs | {' | '.join(figures)} |\n|---|---|{'---|' * len(figures)}")
    for name, runs in found.items():
        print(
            f"| {name} | {len(runs)} | {' | '.join(_cell([run.get(figure) for run in runs]) for figure in figures)} |"
        )
    for name, values in known.items():
        print(f"| {name.replace('_', ' ')} | | {' | '.join(_cell([values.get(figure)]) for figure in figures)} |")


def _runs(row: str) -> tuple[str, list[tuple[pathlib.Path, dict]]]:
    """Read the summaries that NAME=PATTERN names."""
    name, sign, pattern = row.partition("=")
    folders = sorted(map(pathlib.Path, glob.glob(pattern))) if sign else []
    files = [folder / "summary.json" for folder in folders if (folder / "summary.json").is_file()]
    if not files:
        raise InputError(f"{row!r}: no finished run matches; give NAME=PATTERN of workdirs, such as full=runs/full-*")
    try:
        return name, [(file.parent, json.loads(file.read_text())) for file in files]
    except ValueError as error:
        raise InputError(f"{row!r}: a summary.json is damaged ({error}); run that training again") from error


def _table(run: tuple[pathlib.Path, dict], name: str | None) -> dict[str, Figures]:
    folder, summary = run
    if name is None and "evaluation" in summary:
        return summary["evaluation"]
    if name not in (tables := summary.get("tables", {})):
        raise InputError(f"{folder} has no table {name!r}; besides the main one it has {', '.join(tables) or 'none'}")
    return tables[name]


def _after(run: tuple[pathlib.Path, dict], table: str | None, stage: str | None) -> Figures:
    folder, summary = run
    if stage is None:
        return _table(run, table)["after"]
    stages = {entry["name"]: entry.get("evaluation", {}) for entry in summary["stages"]}
    if stage not in stages:
        raise InputError(f"{folder} has no stage {stage!r}; it has {', '.join(stages)}")
    if (table or "main") not in stages[stage]:
        raise InputError(f"{folder}: stage {stage!r} was not judged by table {table!r}")
    return stages[stage][table or "main"]


def _cell(values: Sequence[float | None]) -> str:
    """Give mean and standard deviation, or a dash where a run has no such figure."""
    if any(value is None for value in values):
        return "-"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
