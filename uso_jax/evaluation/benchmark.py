# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A benchmark as data: how its items are prepared, which metrics judge them, which columns its table has.

Each is one file in `benchmarks`, with a `BENCHMARK` in it.
"""

import dataclasses
import importlib
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from uso_jax.common.errors import InputError
from uso_jax.evaluation.gallery import SUFFIXES
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics.base import Metric

NAMES = (
    "uso_bench", "dreambench", "omnicontext", "multiid", "mico", "sconeeval", "innocomposer", "viton_hd", "fashion130k",
    "triplets", "dreambenchpp", "mini",
)  # fmt: skip
Values = Mapping[str, float]


@dataclass(frozen=True)
class Column:
    """One column of a benchmark's table.

    Attributes:
      name: as published.
      figures: of items; the values of several are pooled.
      subsets: of the items that count; () all.
      by: "" is the mean over items; "subset" or the name of an entry of meta is the mean over groups of their means.
      combine: names of columns before this one, whose mean it is; it then has no figures.
      higher_is_better: None where a figure is neither good nor bad.
      scale: a factor of what is shown.
      digits: behind the point.
      iqr: in compat, values beyond 1.5 interquartile ranges are left out first; the median, if that is over half.
    """

    name: str
    figures: tuple[str, ...] = ()
    subsets: tuple[str, ...] = ()
    by: str = ""
    combine: tuple[str, ...] = ()
    higher_is_better: bool | None = True
    scale: float = 1.0
    digits: int = 3
    iqr: bool = False


@dataclass(frozen=True)
class Benchmark:
    """Everything that one benchmark is.

    Attributes:
      name, title, source: the last says where its protocol is published.
      prepare: (folder of the data, options) -> items.
      metrics: that judge an image.
      columns: of its table.
      derive: (item, figures of one image, compat) -> figures that follow from them, such as a product.
      published: figures of models by column, in the protocol's own scale.
      published_source: where they stand.
      ours: what the public protocol leaves open, and what is done here; it stands in every report.
      options: names and meanings of what `prepare` takes besides the folder, with defaults.
      data: what the folder must hold, in a sentence.
      draws: the folder is filled by `prepare`, and need not exist.
      scatter: the two columns that the report plots models by; () those that most models have.
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

    def items(self, data: pathlib.Path, options: Mapping[str, str]) -> Sequence[EvalItem]:
        """Prepare items, with options checked and filled in.

        Raises:
          InputError: an option is unknown, or the data are not as they must be.
        """
        if unknown := options.keys() - self.options.keys():
            known = ", ".join(self.options) or "none"
            raise InputError(f"{self.name} has no option {min(unknown)!r}; its options are {known}")
        return self.prepare(data, {name: default for name, (default, _) in self.options.items()} | dict(options))


def by_name(name: str) -> Benchmark:
    """Give a benchmark."""
    if name not in NAMES:
        raise InputError(f"unknown benchmark {name!r}; known are {', '.join(NAMES)}")
    return importlib.import_module(f"uso_jax.evaluation.benchmarks.{name}").BENCHMARK


# ---------------------------------------------------------------------------------------------------- reading folders


def images(folder: pathlib.Path, what: str) -> list[str]:
    """List the images of a folder in the order of their names.

    Raises:
      InputError: it has none; `what` says what they would be.
    """
    found = sorted(str(path) for path in folder.glob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise InputError(f"{folder} has no images, but must hold {what}")
    return found


def text_lines(path: pathlib.Path, what: str) -> list[str]:
    """Read the lines of a text file that are not empty."""
    try:
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}), but must hold {what}") from error
    if not found:
        raise InputError(f"{path} is empty, but must hold {what}")
    return found


def slug(text: str) -> str:
    """Give a name that is fit for a file."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._") or "x"


def resized(items: Sequence[EvalItem], size: int | None, limit: int | None) -> list[EvalItem]:
    """Give items with another long side (0: the model's own size), and the first `limit` of each subset."""
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
    """Give figures of models by column; None where a model has none."""
    pairs = {model: zip(columns, values, strict=True) for model, values in rows.items()}
    return {model: {name: value for name, value in found if value is not None} for model, found in pairs.items()}
