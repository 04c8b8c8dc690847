# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Join the evaluation tables of several runs: means and standard deviations over seeds, as Markdown.

    uso-compare "full=runs/full-*" "w/o SRL=runs/no_reward-*" --figures style_accuracy,content_accuracy

Each row is NAME=PATTERN of workdirs that have a summary.json. --table selects a table of the runs, by default the main
one; --stage selects the state after a stage, by default the last. The rows before, target and copies come from the
first run. --intervals adds the gain of every row over the state before training, and the difference of every row to the
first one, with 95 % bootstrap intervals over the held-out images. --perceptual adds LPIPS to the target and the Gram
distance to the style image, computed on the images that each run keeps (pip install "uso_jax[perceptual]"). --sheet
shows the images of each row's first run side by side, --curves plots rewards and judges on held-out images over the
steps that trained with a reward:

    uso-compare "full=runs/full-*" --curves curves.png --sheet sheet.png --images 0,3,17
"""

import argparse
import glob
import pathlib
import statistics
from collections.abc import Sequence
from typing import NotRequired, TypedDict

import numpy as np
from PIL import Image

from uso_jax.common import atomic_files, progress, untrusted
from uso_jax.common.errors import InputError, exit_cleanly
from uso_jax.images import contact_sheet

Figures = dict[str, float | None]


class _Stage(TypedDict):
    name: str
    evaluation: NotRequired[dict[str, Figures]]
    reward: NotRequired[list[Figures]]


class _Summary(TypedDict):
    """What this program reads of a run's summary.json."""

    stages: NotRequired[list[_Stage]]
    evaluation: NotRequired[dict[str, Figures]]
    tables: NotRequired[dict[str, dict[str, Figures]]]


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    """Print the table. User errors end with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", metavar="NAME=PATTERN", help="a row, and the workdirs of its runs")
    parser.add_argument("--table", metavar="NAME", help="one of the run's tables; default: the main one")
    parser.add_argument("--stage", metavar="NAME", help="state after this stage; default: the last")
    parser.add_argument("--figures", metavar="A,B,...", help="default: all figures of the first row")
    parser.add_argument("--perceptual", action="store_true", help="also LPIPS and Gram distance, after the last stage")
    parser.add_argument("--intervals", action="store_true", help="also differences with 95 %% intervals over images")
    parser.add_argument("--sheet", metavar="FILE", help="PNG of held-out images, one column per row of the table")
    parser.add_argument(
        "--images",
        "--pictures",
        dest="images",
        metavar="A,B,...",
        default="0,1,2,3,4,5,6,7",
        help="indices of the images on --sheet; default: %(default)s",
    )
    parser.add_argument("--curves", metavar="FILE", help="PNG of rewards and judges over the steps, one line per run")
    args = parser.parse_args(argv)
    for path in filter(None, (args.sheet, args.curves)):
        with atomic_files.explained(path, "choose another file"):
            atomic_files.probe(pathlib.Path(path))
    rows = dict(_runs(row) for row in args.rows)
    first = next(iter(rows.values()))[0]
    known = {name: found for name, found in _table(first, args.table).items() if name != "after"}
    found = {name: [_after(run, args.table, args.stage) for run in runs] for name, runs in rows.items()}
    if args.perceptual:
        if args.stage:
            raise InputError("a run keeps the images of its last stage only: leave out --stage or --perceptual")
        found, known = _with_distances(rows, found, known, args.table)
    figures = args.figures.split(",") if args.figures else list(next(iter(found.values()))[0])
    print(f"| | runs | {' | '.join(figures)} |\n|---|---|{'---|' * len(figures)}")
    for name, runs in found.items():
        print(
            f"| {name} | {len(runs)} | {' | '.join(_cell([run.get(figure) for run in runs]) for figure in figures)} |"
        )
    for name, values in known.items():
        print(f"| {name.replace('_', ' ')} | | {' | '.join(_cell([values.get(figure)]) for figure in figures)} |")
    if args.intervals:
        print("\n" + _intervals(rows, args.table or "main", figures))
    if args.sheet:
        contact_sheet.save(_sheet({name: runs[0] for name, runs in rows.items()}, args.table, args.images), args.sheet)
    if args.curves:
        _curves({name: [summary for _, summary in runs] for name, runs in rows.items()}, args.curves)


def _runs(row: str) -> tuple[str, list[tuple[pathlib.Path, dict]]]:
    """Return the name, and the workdir and summary of every run, of a row NAME=PATTERN."""
    name, sign, pattern = row.partition("=")
    folders = sorted(map(pathlib.Path, glob.glob(pattern))) if sign else []
    files = [folder / "summary.json" for folder in folders if (folder / "summary.json").is_file()]
    if not files:
        raise InputError(f"{row!r}: no finished run matches; pass NAME=PATTERN of workdirs, such as full=runs/full-*")
    return name, [
        (file.parent, untrusted.json(file, _Summary, remedy="run that training again", nan=True)) for file in files
    ]


def _table(run: tuple[pathlib.Path, dict], name: str | None) -> dict[str, Figures]:
    folder, summary = run
    if name is None and "evaluation" in summary:
        return summary["evaluation"]
    if name not in (tables := summary.get("tables", {})):
        others = ", ".join(tables) or "none"
        raise InputError(f"{folder} has no table {name or 'main'!r}; besides the main one it has {others}")
    return tables[name]


def _after(run: tuple[pathlib.Path, dict], table: str | None, stage: str | None) -> Figures:
    folder, summary = run
    if stage is None:
        if "after" not in (found := _table(run, table)):
            raise InputError(f"{folder} has no row 'after'; it has {', '.join(found) or 'none'}")
        return found["after"]
    stages = {entry["name"]: entry.get("evaluation", {}) for entry in summary.get("stages", ())}
    if stage not in stages:
        raise InputError(f"{folder} has no stage {stage!r}; it has {', '.join(stages)}")
    if (table or "main") not in stages[stage]:
        raise InputError(f"{folder}: stage {stage!r} was not judged by table {table!r}")
    return stages[stage][table or "main"]


def _with_distances(rows: dict, found: dict, known: dict, table: str | None) -> tuple[dict, dict]:
    """Return `found` and `known` with LPIPS and Gram distances added."""
    from uso_jax.evaluation.metrics.lpips import Perceptual  # brings JAX along

    judge = Perceptual()
    given = _images(next(iter(rows.values()))[0][0], table)
    columns = {name: name.removeprefix("copy_") for name in known}
    known = {name: known[name] | judge.distances(given, column) for name, column in columns.items()}
    for name, runs in rows.items():
        with progress.phase(f"measuring distances of {name}"):
            more = [judge.distances(_images(folder, table), "after") for folder, _ in runs]
        found[name] = [figures | distances for figures, distances in zip(found[name], more, strict=True)]
    return found, known


def _intervals(rows: dict, table: str, figures: Sequence[str]) -> str:
    """Return a table of the rows' gains over the state before training, and of differences to the first row."""
    from uso_jax.evaluation import verdicts  # brings SciPy along

    kept = {name: [verdicts.load(folder, table) for folder, _ in runs] for name, runs in rows.items()}
    of = lambda name, row: [run[row] for run in kept[name]]
    first, *others = kept
    found = {f"{name} - before": verdicts.gains(of(name, "after"), of(name, "before")) for name in kept}
    found |= {f"{name} - {first}": verdicts.gains(of(name, "after"), of(first, "after")) for name in others}
    exact = [figure for figure in figures if all(figure in gains for gains in found.values())]
    if not exact:
        raise InputError(
            f"--intervals knows no figure of {', '.join(figures)}; it has {', '.join(found[f'{first} - before'])}"
        )
    cell = lambda gain: f"{gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"
    lines = [f"| {name} | {' | '.join(cell(gains[figure]) for figure in exact)} |" for name, gains in found.items()]
    return "\n".join([f"| 95 % over images | {' | '.join(exact)} |", f"|---|{'---|' * len(exact)}", *lines])


def _images(folder: pathlib.Path, table: str | None) -> dict[str, np.ndarray]:
    """Return the images that a run keeps for a table, by column."""
    try:
        with np.load(folder / contact_sheet.COLUMNS, allow_pickle=False) as found:
            return {key.partition("/")[2]: found[key] for key in found if key.startswith(f"{table or 'main'}/")}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder / contact_sheet.COLUMNS} cannot be read ({error}): run that training again"
        ) from error


def _sheet(runs: dict[str, tuple[pathlib.Path, dict]], table: str | None, chosen: str) -> Image.Image:
    """Return a sheet with references, the images of each row's first run, and targets."""
    columns, targets = {}, {}
    for name, (folder, _) in runs.items():
        shown = _images(folder, table)
        try:
            picked = {key: images[[int(number) for number in chosen.split(",")]] for key, images in shown.items()}
        except (ValueError, IndexError) as error:
            raise InputError(f"{folder / contact_sheet.COLUMNS} does not have images {chosen}: {error}") from error
        columns |= {key: picked[key] for key in ("content", "style") if key in picked}
        columns[name], targets = picked["after"], {"target": picked["target"]}
    return contact_sheet.draw(columns | targets)


def _curves(rows: dict[str, list[dict]], path: str) -> None:
    """Plot rewards and judges on held-out images for every stage with a reward."""
    from matplotlib.figure import Figure  # slow to import, and only --curves needs it

    from uso_jax.evaluation.report.charts import COLOURS

    found: dict[str, list[tuple[str, list[dict]]]] = {}  # by stage: row and history of each run
    for name, runs in rows.items():
        for entry in (entry for run in runs for entry in run.get("stages", ()) if entry.get("reward")):
            found.setdefault(entry["name"], []).append((name, entry["reward"]))
    if not found:
        raise InputError("none of these runs trained with a reward, so there are no curves")
    told = next(iter(found.values()))[0][1][0]
    figures = sorted(told.keys() - {"step"}, key=lambda name: (not name.startswith("heldout_"), name))  # rewards first
    figure = Figure(figsize=(2.4 * len(figures), 2.2 * len(found) + 0.3), layout="constrained")
    plots = figure.subplots(len(found), len(figures), squeeze=False)
    colours = dict(zip(rows, COLOURS * len(rows), strict=False))
    for line, (stage, histories) in zip(plots, found.items(), strict=True):
        for plot, name in zip(line, figures, strict=True):
            for row, history in histories:
                # Steps since the reward began, which differs between the rows.
                points = [(entry["step"] - history[0]["step"], entry[name]) for entry in history if name in entry]
                plot.plot(*zip(*points, strict=True), color=colours[row], label=row, marker=".")
            plot.set_title(name.removeprefix("heldout_").replace("_", " "), fontsize=9)
            plot.tick_params(labelsize=7)
            plot.grid(alpha=0.25)
        line[0].set_ylabel(stage.replace("_", " "), fontsize=9)
    figure.supxlabel("steps with the reward", fontsize=9)
    handles = {
        label: handle for plot in figure.axes for handle, label in zip(*plot.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles), fontsize=8, frameon=False)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _cell(values: Sequence[float | None]) -> str:
    """Return mean and standard deviation as text, or a dash if a run lacks the figure."""
    if any(value is None for value in values):
        return "-"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"
