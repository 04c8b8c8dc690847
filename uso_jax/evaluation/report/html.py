# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A benchmark's report: report.html with its images in report_files, report.json and report.csv.

The page is self-contained: it loads nothing from the network. Prompts, keys and reasons are untrusted and escaped.
"""

import csv
import io
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from uso_jax.common import atomic_files, progress, untrusted
from uso_jax.common.errors import BadExample, InputError
from uso_jax.evaluation import significance
from uso_jax.evaluation.benchmark import Benchmark
from uso_jax.evaluation.gallery import pixels
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.naming import Naming
from uso_jax.evaluation.report import charts
from uso_jax.evaluation.summary import Summary, csv_text, item_means

SHOWN = 60  # items per subset in the item list, in addition to those with problems
_SHEET = 8  # rows of a contact sheet
_FILES = "report_files"
_SMALL = 112  # images of at most this many pixels a side are stored losslessly


def read_summaries(folder: pathlib.Path, names: Sequence[str] | None) -> list[dict[str, Any]]:
    """Return the summaries of the named models, or of all in a folder, with their figures by image.

    Raises:
      InputError: there are none, or one is damaged.
    """
    found = []
    names = names or sorted(path.parent.name for path in folder.glob("*/summary.json"))
    if not names:
        raise InputError(f"{folder} has no scored model; run the stage score first")
    for name in names:
        path, again = folder / name / "summary.json", f"score {name} again"
        told = untrusted.json(
            path, Summary, missing=f"{path} does not exist; score {name} first", remedy=again, nan=True
        )
        others = {"notes": told.get("notes", []), "other": told.get("other", {"mode": "", "table": {}, "failed": 0})}
        found.append(told | others | {"figures": _figures(folder / name / "items.csv", again)})
    return found


def _figures(path: pathlib.Path, remedy: str) -> dict[tuple[str, int], dict[str, float]]:
    """Read the figures of every image from items.csv."""
    text = untrusted.text(path, missing=f"{path} does not exist; {remedy}", remedy=remedy)
    try:
        return {
            (line.pop("key"), int(line.pop("number"))): {n: float(v) for n, v in line.items() if n != "subset" and v}
            for line in csv.DictReader(io.StringIO(text, newline=""), strict=True)
        }
    except (csv.Error, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error!r}); {remedy}") from error


def write_report(
    folder: pathlib.Path, benchmark: Benchmark, items: Sequence[EvalItem], models: Sequence[dict]
) -> pathlib.Path:
    """Write the report and return the path of report.html.

    Args:
      folder: receives the report.
      benchmark: the benchmark.
      items: all of its items.
      models: summaries from `read_summaries`.

    Raises:
      InputError: a model was scored on another benchmark, or the folder cannot be written.
    """
    for told in models:
        if told["benchmark"] != benchmark.name:
            raise InputError(
                f"{told['model']} was scored on {told['benchmark']}, not on {benchmark.name}; score it again"
            )
    subset_of = {one.key: one.subset for one in items}
    by_item = {
        told["model"]: {key: means for key, means in item_means(told["figures"]).items() if key in subset_of}
        for told in models
    }
    compared = significance.compare(benchmark, by_item, subset_of)
    related = significance.correlations(by_item, subset_of)
    files = folder / _FILES
    with atomic_files.explained(folder, "choose another --to"):
        shutil.rmtree(files, ignore_errors=True)
        files.mkdir(parents=True)
        drawn = _draw(files, benchmark, models)
        shown = _items(files, items, models)
        sheets = _sheets(files, items, models)
        known = lambda told, name: name in told["table"] or bool(told["other"]["table"].get(name))
        columns = [c for c in benchmark.columns if any(known(told, c.name) for told in models)]
        page = _environment().get_template("report.html").render(
            benchmark=benchmark, models=models, columns=columns, best=_best(columns, models),
            published=benchmark.published, comparisons=compared, correlations=related, charts=drawn, items=shown,
            sheets=sheets, subsets=dict.fromkeys(subset_of.values()), total=len(items),
        )  # fmt: skip
        atomic_files.write_file(folder / "report.csv", _csv(columns, models, benchmark))
        plain = [{name: value for name, value in told.items() if name != "figures"} for told in models]
        text = {"models": plain, "comparisons": compared, "correlations": related, "published": benchmark.published}
        atomic_files.write_file(folder / "report.json", json.dumps(text, indent=1, ensure_ascii=False) + "\n")
        atomic_files.write_file(folder / "report.html", page)
    return folder / "report.html"


def _best(columns: Sequence, models: Sequence[dict]) -> dict[str, float]:
    """Return the best value of each column for which several models have one."""
    found = {}
    for column in columns:
        have = [told["table"][column.name]["value"] for told in models if column.name in told["table"]]
        if len(have) > 1 and column.higher_is_better is not None:
            found[column.name] = (max if column.higher_is_better else min)(have)
    return found


def _draw(files: pathlib.Path, benchmark: Benchmark, models: Sequence[dict]) -> list[tuple[str, str]]:
    """Write charts; return (file, caption) for each."""
    table = {told["model"]: {name: cell["value"] for name, cell in told["table"].items()} for told in models}
    found, drawn = [], charts.radar(benchmark.columns, table)
    if drawn is not None:
        found.append(("radar.svg", drawn, "Columns, each from the worst model to the best"))
    rows = [*table.values(), *benchmark.published.values()]
    known = [c for c in benchmark.columns if any(c.name in row for row in table.values())]
    if benchmark.scatter:
        known = [c for c in known if c.name in benchmark.scatter]
    pairs = [
        (sum(x.name in row and y.name in row for row in rows), x, y)
        for i, x in enumerate(known)
        for y in known[i + 1 :]
    ]
    if pairs:
        count, x, y = max(pairs, key=lambda pair: pair[0])
        if count > 1:
            found.append(("scatter.svg", charts.scatter(x, y, table, benchmark.published), f"{x.name} and {y.name}"))
    for name, text, _ in found:
        (files / name).write_text(text, encoding="utf-8")
    return [(f"{_FILES}/{name}", what) for name, _, what in found]


def _thumbnail(files: pathlib.Path, path: str, made: dict[str, str]) -> str | None:
    """Write a thumbnail unless it exists; return its path relative to the page, or None if the image is unreadable."""
    if path not in made:
        try:
            image = Image.fromarray(pixels(path))
        except BadExample:
            return None
        small = max(image.size) <= _SMALL
        name = f"{len(made):05d}.{'png' if small else 'jpg'}"
        image.thumbnail((2 * _SMALL, 2 * _SMALL))
        image.save(files / name, **({} if small else {"quality": 85}))
        made[path] = f"{_FILES}/{name}"
    return made[path]


def _items(files: pathlib.Path, items: Sequence[EvalItem], models: Sequence[dict]) -> list[dict[str, Any]]:
    """Return the entries of the item list: items spread evenly over each subset, and those with problems."""
    problems: dict[str, list[str]] = {}
    for told in models:
        for kind in ("problems", "skipped"):
            for one in told[kind]:
                what = f"{one['metric']}: " if one["metric"] else ""
                problems.setdefault(one["key"], []).append(
                    f"{told['model']}, image {one['number']}, {what}{one['reason']}"
                )
    index = {one.key: number for number, one in enumerate(items)}
    chosen = {one.key for one in _spread(items, SHOWN)} | set(list(problems)[: 10 * SHOWN])
    made: dict[str, str] = {}
    found = []
    for one in progress.bar([one for one in items if one.key in chosen], "thumbnails", unit="item", leave=False):
        references = [("content", path) for path in one.content_refs] + [("style", path) for path in one.style_refs]
        references += [("target", one.target)] if one.target else []
        images = []
        for told in models:
            for number in range(one.num_images):
                path = _image(told, one, number, index[one.key])
                figures = told["figures"].get((one.key, number), {})
                images.append((told["model"], number, path and _thumbnail(files, path, made), figures))
        shown = [(kind, _thumbnail(files, path, made)) for kind, path in references]
        found.append({"item": one, "references": shown, "images": images, "problems": problems.get(one.key, [])})
    return found


def _spread(items: Sequence[EvalItem], most: int) -> list[EvalItem]:
    found = []
    for subset in dict.fromkeys(one.subset for one in items):
        own = [one for one in items if one.subset == subset]
        count = min(most, len(own))
        found += [own[number * len(own) // count] for number in range(count)]
    return found


def _image(told: Mapping[str, Any], one: EvalItem, number: int, index: int) -> str | None:
    """Return the path of a model's image of an item, or None if it no longer exists."""
    names = Naming.of(told.get("naming", "")).names(one, number, index)
    paths = (pathlib.Path(told["images"], name) for name in names)
    return next((str(path) for path in paths if path.is_file()), None)


def _sheets(files: pathlib.Path, items: Sequence[EvalItem], models: Sequence[dict]) -> list[tuple[str, str]]:
    """Write a contact sheet per subset; return (subset, file) for each."""
    found = []
    index = {one.key: number for number, one in enumerate(items)}
    for number, subset in enumerate(dict.fromkeys(one.subset for one in items)):
        own = _spread([one for one in items if one.subset == subset], _SHEET)
        counts = [max(len(refs(one)) for one in own) for refs in (lambda o: o.content_refs, lambda o: o.style_refs)]
        targets = any(one.target for one in own)
        titles = ["content"] * min(counts[0], 4) + ["style"] * min(counts[1], 2) + ["target"] * targets
        titles += [told["model"] for told in models]
        rows = []
        for one in own:
            paths = [*_filled(one.content_refs, min(counts[0], 4)), *_filled(one.style_refs, min(counts[1], 2))]
            paths += [one.target] if targets else []
            paths += [_image(told, one, 0, index[one.key]) for told in models]
            rows.append((one.prompt or "(no prompt: keep the layout)", [_read(path) for path in paths]))
        name = f"sheet_{number}.webp"
        charts.sheet(rows, titles).save(files / name, quality=85)
        found.append((subset, f"{_FILES}/{name}"))
    return found


def _filled(paths: Sequence[str], count: int) -> list[str | None]:
    return [*paths[:count], *[None] * (count - len(paths))]


def _read(path: str | None) -> np.ndarray | None:
    try:
        return None if path is None else pixels(path)
    except BadExample:
        return None


def _csv(columns: Sequence, models: Sequence[dict], benchmark: Benchmark) -> str:
    names = [column.name for column in columns]
    cell = lambda told, name: told["table"].get(name, {}).get("value", "")
    # Columns of the other rule, where it differs for a model.
    differ = [(name, mode) for name in names for mode in ("strict", "compat") if any(
        told["other"]["mode"] == mode and name in told["other"]["table"] for told in models
    )]  # fmt: skip

    def other(told: dict, name: str, mode: str) -> Any:
        if told["other"]["mode"] != mode or name not in told["other"]["table"]:
            return cell(told, name)
        return (told["other"]["table"][name] or {}).get("value", "")

    lines = [["model", "from", *names, *(f"{name} ({mode})" for name, mode in differ)]]
    lines += [
        [told["model"], told["mode"], *(cell(told, name) for name in names), *(other(told, *one) for one in differ)]
        for told in models
    ]
    lines += [
        [model, "published", *(row.get(name, "") for name in names), *([""] * len(differ))]
        for model, row in benchmark.published.items()
    ]
    return csv_text(lines)


def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["number"] = lambda value, digits=3: "-" if value is None else f"{value:.{digits}f}"
    return environment
