# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A benchmark as data: how its items are prepared, which metrics score them, and the columns of its table.

Each benchmark is one file in `benchmarks` that defines `BENCHMARK`.
"""

import dataclasses
import importlib
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from uso_jax.common import folders, untrusted
from uso_jax.common.errors import InputError
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics.base import Metric
from uso_jax.evaluation.protocol import JudgeProtocol

Values = Mapping[str, float]


@dataclass(frozen=True)
class Column:
    """One column of a benchmark's table.

    Attributes:
      name: as published.
      figures: names of item figures to average; the values of several figures are pooled.
      subsets: subsets to include; () includes all.
      by: "" averages over items; "subset" or a key of `meta` averages the means of groups.
      combine: names of earlier columns to average; the column then has no figures.
      partial: with --compat, average those of `combine` that have values; by default all must.
      product: names of earlier columns to multiply; the column then has no figures.
      higher_is_better: None if the figure is neither good nor bad.
      scale: factor applied to the values.
      digits: decimals shown.
      iqr: with --compat, drop values beyond 1.5 interquartile ranges first; use the median if fewer than half remain.
    """

    name: str
    figures: tuple[str, ...] = ()
    subsets: tuple[str, ...] = ()
    by: str = ""
    combine: tuple[str, ...] = ()
    partial: bool = False
    product: tuple[str, ...] = ()
    higher_is_better: bool | None = True
    scale: float = 1.0
    digits: int = 3
    iqr: bool = False


@dataclass(frozen=True)
class Benchmark:
    """The definition of a benchmark.

    Attributes:
      name: on the command line and in result files.
      title: in reports.
      source: where the protocol is published.
      prepare: (data folder, options) -> items.
      metrics: applied to every image.
      columns: of the table.
      derive: (item, figures of one image, compat) -> derived figures, such as a product.
      published: published results, model -> column -> value, in the protocol's scale.
      published_source: where they are published.
      ours: choices made here where the public protocol is undefined; printed in every report.
      options: further arguments of `prepare`.
      data: what the data folder must contain, as a phrase.
      draws: `prepare` fills the data folder, so it need not exist.
      scatter: the two columns of the report's scatter plot; () picks the pair that most models have.
    """

    name: str
    title: str
    source: str
    prepare: Callable[[pathlib.Path, Mapping[str, str]], Sequence[EvalItem]]
    metrics: tuple[Metric, ...]
    columns: tuple[Column, ...]
    derive: Callable[[EvalItem, Values, bool], Values] = lambda item, values, compat: {}
    published: Mapping[str, Values] = field(default_factory=dict)
    published_source: str = ""
    ours: tuple[str, ...] = ()
    options: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # name -> (default, meaning)
    data: str = ""
    draws: bool = False
    scatter: tuple[str, ...] = ()

    @property
    def judge(self) -> JudgeProtocol | None:
        """How its judge is asked, if it has one."""
        return next((metric.judge for metric in self.metrics if metric.judge), None)

    def items(self, data: pathlib.Path, options: Mapping[str, str]) -> Sequence[EvalItem]:
        """Prepare the items; missing options take their defaults.

        Raises:
          InputError: an option is unknown, or the data folder is invalid.
        """
        if unknown := options.keys() - self.options.keys():
            known = ", ".join(self.options) or "none"
            raise InputError(f"{self.name} has no option {min(unknown)!r}; known options: {known}")
        return self.prepare(data, {name: default for name, (default, _) in self.options.items()} | dict(options))


MODULES = (  # of `evaluation.benchmarks`, each with a BENCHMARK
    "uso_bench", "dreambench", "omnicontext", "multiid", "mico", "sconeeval", "innocomposer", "viton_hd", "fashion130k",
    "triplets", "dreambenchpp", "mini",
)  # fmt: skip
BENCHMARKS: dict[str, Benchmark | None] = dict.fromkeys(MODULES)  # None until it is imported, by `by_name`


def by_name(name: str) -> Benchmark:
    """Return a benchmark.

    Raises:
      InputError: the name is unknown.
    """
    if name not in BENCHMARKS:
        raise InputError(f"unknown benchmark {name!r}; known are {', '.join(BENCHMARKS)}")
    if (found := BENCHMARKS[name]) is None:
        found = BENCHMARKS[name] = importlib.import_module(f"uso_jax.evaluation.benchmarks.{name}").BENCHMARK
    return found


# ---------------------------------------------------------------------------------------------------- reading folders


def images(folder: pathlib.Path, what: str) -> list[str]:
    """Return the paths of the images in a folder, sorted by name.

    Raises:
      InputError: there are none; `what` describes the expected images.
    """
    files = folders.files(folder, deep=False) if folder.is_dir() else ()
    found = [path for name, path in files if folders.is_image(name)]
    if not found:
        raise InputError(f"{folder} has no images; it must contain {what}")
    return found


def text_lines(path: pathlib.Path, what: str) -> list[str]:
    """Return the non-empty lines of a text file, stripped.

    Raises:
      InputError: the file is unreadable or empty; `what` describes the expected lines.
    """
    text = untrusted.text(
        path, missing=f"cannot read {path}, it does not exist; it must contain {what}", remedy=f"it must contain {what}"
    )
    found = [line.strip() for line in untrusted.lines(text) if line.strip()]
    if not found:
        raise InputError(f"{path} is empty; it must contain {what}")
    return found


def slug(text: str) -> str:
    """Return `text` as a valid file name."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._") or "x"


def resized(items: Sequence[EvalItem], size: int | None, limit: int | None) -> list[EvalItem]:
    """Return items rescaled and limited.

    Args:
      items: the items.
      size: long side in pixels; 0 uses the model's default size, None keeps the items' sizes.
      limit: keep the first `limit` items of each subset; None keeps all.

    Raises:
      InputError: `size` is negative.
    """
    if size is not None and size < 0:
        raise InputError(f"--size must not be negative, not {size}")
    found, counts = [], {}
    for one in items:
        counts[one.subset] = counts.get(one.subset, 0) + 1
        if limit is None or counts[one.subset] <= limit:
            side = max(one.width, one.height, 1)
            changes = {} if size is None else {n: round(getattr(one, n) * size / side) for n in ("width", "height")}
            found.append(dataclasses.replace(one, **changes))
    return found


def published(columns: Sequence[str], rows: Mapping[str, Sequence[float | None]]) -> dict[str, Values]:
    """Return model -> column -> value from rows of values; None marks a missing value."""
    pairs = {model: zip(columns, values, strict=True) for model, values in rows.items()}
    return {model: {name: value for name, value in found if value is not None} for model, found in pairs.items()}
