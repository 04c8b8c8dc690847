# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A benchmark's table from the figures of images: means by its protocol, with bootstrap intervals.

Intervals are the central 95 % over 1,000 bootstrap resamples of items, drawn within each group of the column. The
images of an item are averaged first. With several rounds of judging, each round has its mean, and the value is the mean
of the rounds. Missing values are counted and never imputed.

Shapes: n items of a group, f figures, k rounds, r resamples.
"""

import csv
import datetime
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np
from jaxtyping import Float

from uso_jax.common import atomic_files
from uso_jax.evaluation.benchmark import Benchmark, Column
from uso_jax.evaluation.gallery import Gallery
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.scoring import Name, Scores

RESAMPLES = 1000
_SEED = 20_25
_BLOCK = 4_000_000  # values resampled at a time

Figures = Mapping[str, float]


class Cell(TypedDict):
    """A value of a table, with its interval unless it is of the whole."""

    value: float
    low: NotRequired[float]
    high: NotRequired[float]


class _Entry(TypedDict):
    key: str
    number: int
    metric: str
    reason: str


class _Note(TypedDict):
    what: str
    images: int
    first: list[str]


class _Other(TypedDict):
    """What differs under the other rule; None stands for a column without a value."""

    mode: str
    table: dict[str, Cell | None]
    failed: int


class Summary(TypedDict):
    """What summary.json holds, as far as reports read it."""

    benchmark: str
    model: str
    mode: str
    date: str
    complete: bool
    images: str
    pictures: dict[str, int]
    table: dict[str, Cell]
    metrics: dict[str, dict[str, Any]]
    problems: list[_Entry]
    skipped: list[_Entry]
    extra: list[str]
    judge: dict[str, Any] | None
    naming: NotRequired[str]
    other: NotRequired[_Other]
    notes: NotRequired[list[_Note]]


@dataclass(frozen=True)
class Row:
    """The figures of one item by round, each averaged over the images that have it."""

    item: EvalItem
    figures: Mapping[str, Float[np.ndarray, " k"]]


def rows(benchmark: Benchmark, items: Sequence[EvalItem], scores: Scores, compat: bool) -> list[Row]:
    """Return a row for every item with at least one figure."""
    means = _item_means(_by_image(benchmark, items, scores, compat))
    return [Row(one, means[one.key]) for one in items if one.key in means]


def item_means(figures: Mapping[Name, Figures]) -> dict[str, dict[str, float]]:
    """Return item key -> figure -> mean over the images and rounds that have it."""
    rounds = {name: {n: np.atleast_1d(value) for n, value in values.items()} for name, values in figures.items()}
    return {key: {n: _nanmean(x) for n, x in found.items()} for key, found in _item_means(rounds).items()}


def _item_means(figures: Mapping[Name, Mapping[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """Return item key -> figure -> mean over images, by round."""
    images: dict[str, dict[str, list[np.ndarray]]] = {}
    for (key, _), values in figures.items():
        for name, value in values.items():
            images.setdefault(key, {}).setdefault(name, []).append(value)
    mean = lambda x: np.array([_nanmean(column) for column in np.stack(x).T])
    return {key: {name: mean(x) for name, x in found.items()} for key, found in images.items()}


def _nanmean(values: np.ndarray) -> float:
    """Return the mean of what is not NaN, or NaN."""
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def _by_image(
    benchmark: Benchmark, items: Sequence[EvalItem], scores: Scores, compat: bool
) -> dict[Name, dict[str, Float[np.ndarray, " k"]]]:
    """Return (key, number) -> figures by round, with derived ones, for images with at least one figure."""
    found = {}
    for one in items:
        for number in range(one.num_images):
            if values := scores.figures.get((one.key, number)):
                rounds = {name: np.atleast_1d(np.asarray(value, float)) for name, value in values.items()}
                found[one.key, number] = rounds | _derived(benchmark, one, rounds, compat)
    return found


def _derived(benchmark: Benchmark, one: EvalItem, rounds: Mapping[str, np.ndarray], compat: bool) -> dict:
    """Return the derived figures of an image by round. Figures that have one value enter every round."""
    count = max(map(len, rounds.values()))
    at = lambda value, k: float(value[k if len(value) > 1 else 0])
    each = [{name: at(value, k) for name, value in rounds.items()} for k in range(count)]
    given = [
        benchmark.derive(one, {name: x for name, x in values.items() if not np.isnan(x)}, compat) for values in each
    ]
    names = dict.fromkeys(name for values in given for name in values)
    return {name: np.array([values.get(name, np.nan) for values in given]) for name in names}


def table(
    columns: Sequence[Column], rows: Sequence[Row], whole: Figures | None = None, *, compat: bool = False
) -> dict[str, dict[str, Any]]:
    """Return column name -> {value, low, high, n}; columns without values are omitted.

    Args:
      columns: in order; `combine` refers to earlier ones.
      rows: figures of items.
      whole: figures of the set of all images, which have no interval.
      compat: apply the outlier rules of published scripts.
    """
    drawn: dict[str, Float[np.ndarray, " r"]] = {}
    found: dict[str, dict[str, Any]] = {}
    for column in columns:
        if column.combine or column.product:
            wanted, join = (column.combine, np.mean) if column.combine else (column.product, np.prod)
            parts = [name for name in wanted if name in found]
            if not parts or (len(parts) < len(wanted) and not (column.partial and compat)):
                continue
            value = join([found[name]["value"] for name in parts])
            drawn[column.name] = join([drawn[name] for name in parts], axis=0)
            n = max(found[name]["n"] for name in parts)
        elif whole and column.figures[0] in whole:
            found[column.name] = {"value": column.scale * whole[column.figures[0]], "n": len(rows)}
            continue
        else:
            groups = [group for group in _groups(column, rows) if group.size]
            if not groups:
                continue
            iqr = column.iqr and compat
            value = column.scale * np.mean([_mean_of_rounds(group[None], iqr)[0] for group in groups])
            rng = np.random.default_rng(_SEED)
            drawn[column.name] = column.scale * np.mean([_resampled(group, rng, iqr) for group in groups], axis=0)
            n = sum(group.shape[0] for group in groups)
        low, high = np.nanquantile(drawn[column.name], (0.025, 0.975))
        found[column.name] = {"value": float(value), "low": float(low), "high": float(high), "n": n}
    return found


def _groups(column: Column, rows: Sequence[Row]) -> list[Float[np.ndarray, "n f k"]]:
    """Return the column's values by group; the figures of an item stay in one row."""
    groups: dict[Any, list] = {}
    for row in rows:
        if column.subsets and row.item.subset not in column.subsets:
            continue
        known = [row.figures[name] for name in column.figures if name in row.figures]
        if known and not np.isnan(np.concatenate(known)).all():
            absent = np.full(len(known[0]), np.nan)
            values = [row.figures.get(name, absent) for name in column.figures]
            name = row.item.subset if column.by == "subset" else row.item.meta.get(column.by) if column.by else ""
            groups.setdefault(str(name), []).append(values)
    return [_stacked(values) for values in groups.values()]


def _stacked(values: Sequence[Sequence[np.ndarray]]) -> Float[np.ndarray, "n f k"]:
    """Return the values as one array; items that have one round where others have several repeat it."""
    count = max(len(x) for figures in values for x in figures)
    return np.array([[np.broadcast_to(x, count) for x in figures] for figures in values], float)


def _resampled(group: Float[np.ndarray, "n f k"], rng: np.random.Generator, iqr: bool) -> Float[np.ndarray, " r"]:
    size, out = max(1, _BLOCK // group.size), []
    for start in range(0, RESAMPLES, size):
        count = min(size, RESAMPLES - start)
        out.append(_mean_of_rounds(group[rng.integers(len(group), size=(count, len(group)))], iqr))
    return np.concatenate(out)


def _mean_of_rounds(values: Float[np.ndarray, "r n f k"], iqr: bool) -> Float[np.ndarray, " r"]:
    """Return the means of the rounds' means, which ignore NaN."""
    if values.shape[-1] == 1:
        return _mean(values[..., 0], iqr)
    rounds = np.stack([_mean(values[..., k], iqr) for k in range(values.shape[-1])], axis=1)
    return _row_means(rounds)


def _mean(values: Float[np.ndarray, "r n f"], iqr: bool) -> Float[np.ndarray, " r"]:
    """Return means that ignore NaN; with `iqr`, without values beyond 1.5 interquartile ranges."""
    flat = values.reshape(len(values), -1)
    if not iqr:
        return _row_means(flat)
    low, high = np.nanpercentile(flat, (25, 75), axis=1, keepdims=True)
    margin = 1.5 * (high - low)
    kept = np.where((flat >= low - margin) & (flat <= high + margin), flat, np.nan)
    few = np.sum(~np.isnan(kept), axis=1) < 0.5 * np.sum(~np.isnan(flat), axis=1)
    return np.where(few, np.nanmedian(flat, axis=1), np.nanmean(kept, axis=1))


def _row_means(values: Float[np.ndarray, "r n"]) -> Float[np.ndarray, " r"]:
    """Return the mean of each row without NaN, or NaN for a row that has nothing else."""
    counts = np.sum(~np.isnan(values), axis=1)
    return np.divide(np.nansum(values, axis=1), counts, out=np.full(len(values), np.nan), where=counts > 0)


def summarise(
    benchmark: Benchmark, model: str, items: Sequence[EvalItem], gallery: Gallery, scores: Scores, *, compat: bool
) -> dict[str, Any]:
    """Return the summary of a model as JSON: table, counts, problems and metric identities."""
    known = rows(benchmark, items, scores, compat)
    subsets = dict.fromkeys(one.subset for one in items)
    count = lambda entries, name: sum(entry[0] == name for entry in entries)
    metrics = {
        name: {
            "requested": requested,
            "scored": scores.scored.get(name, 0),
            "skipped": count(scores.skipped, name),
            "failed": count(scores.failed, name),
            "identity": scores.identities[name],
        }
        for name, requested in scores.requested.items()
    }
    entry = lambda key, number, reason, metric="": {"key": key, "number": number, "metric": metric, "reason": reason}
    problems = [entry(*name, reason) for name, reason in gallery.problems.items()]
    problems += [entry(key, number, reason, metric) for metric, key, number, reason in scores.failed]
    figures = {name: table(_plain(benchmark, known, name), known) for name in subsets}
    main = table(benchmark.columns, known, scores.whole, compat=compat)
    return {
        "format": 1,
        "benchmark": benchmark.name,
        "model": model,
        "mode": "compat" if compat else "strict",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "items": len(items),
        "pictures": {
            "requested": sum(one.num_images for one in items),
            "scored": len(gallery.samples),
            "missing_or_bad": len(gallery.problems),
            "extra": len(gallery.extra),
        },
        "complete": not problems and not gallery.extra,
        "table": main,
        "other": _other(benchmark, items, scores, main, not compat),
        "subsets": figures,
        "metrics": metrics,
        "problems": problems,
        "skipped": [entry(key, number, reason, metric) for metric, key, number, reason in scores.skipped],
        "extra": gallery.extra,
        "notes": [
            {"what": what, "images": len(files), "first": files[:3]} for what, files in sorted(gallery.notes.items())
        ],
        "ours": list(benchmark.ours),
    }


def _other(
    benchmark: Benchmark, items: Sequence[EvalItem], scores: Scores, main: Mapping[str, Cell], compat: bool
) -> dict[str, Any]:
    """Return the cells of the other rule that differ from the main table; None stands for a column without a value."""
    scores = scores.other or scores
    found = table(benchmark.columns, rows(benchmark, items, scores, compat), scores.whole, compat=compat)
    alike = lambda a, b: a is not None and b is not None and np.isclose(a["value"], b["value"], rtol=1e-9, atol=1e-12)
    names = [one.name for one in benchmark.columns if one.name in main or one.name in found]
    differ = {name: found.get(name) for name in names if not alike(main.get(name), found.get(name))}
    return {"mode": "compat" if compat else "strict", "table": differ, "failed": len(scores.failed)}


def _plain(benchmark: Benchmark, known: Sequence[Row], subset: str) -> list[Column]:
    """Return one column per figure of a subset."""
    names = dict.fromkeys(name for row in known if row.item.subset == subset for name in row.figures)
    return [Column(name, (name,), (subset,)) for name in names]


def write_summary(
    folder: pathlib.Path, found: Mapping[str, Any], benchmark: Benchmark, items: Sequence[EvalItem], scores: Scores
):
    """Write summary.json, summary.csv (the table) and items.csv (figures by image), each atomically.

    Raises:
      InputError: the folder cannot be written.
    """
    mode = found["other"]["mode"]
    lines = [["column", "value", "low", "high", "n"]]
    lines += [[name, *(cell.get(part, "") for part in lines[0][1:])] for name, cell in found["table"].items()]
    if differ := found["other"]["table"]:
        lines[0].append(mode)
        for line in lines[1:]:
            line.append(differ.get(line[0], {"value": line[1]}) or {"value": ""})
            line[-1] = line[-1]["value"]
        lines += [[n, *[""] * 4, cell["value"]] for n, cell in differ.items() if n not in found["table"] and cell]
    figures = _by_image(benchmark, items, scores, found["mode"] == "compat")
    names = list(dict.fromkeys(name for values in figures.values() for name in values))
    subset = {one.key: one.subset for one in items}
    images = [["key", "number", "subset", *names]]
    shown = lambda values, name: _nanmean(values[name]) if name in values else np.nan
    cell = lambda value: "" if np.isnan(value) else value
    images += [[key, n, subset[key], *(cell(shown(v, name)) for name in names)] for (key, n), v in figures.items()]
    with atomic_files.explained(folder, "choose another --to"):
        folder.mkdir(parents=True, exist_ok=True)
        atomic_files.write_file(folder / "items.csv", csv_text(images))
        atomic_files.write_file(folder / "summary.csv", csv_text(lines))
        atomic_files.write_file(folder / "summary.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def csv_text(lines: Sequence[Sequence[Any]]) -> str:
    """Return lines as comma-separated values."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()
