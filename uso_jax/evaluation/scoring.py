# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Scoring a model's images: every metric on every image that has no current result."""

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from uso_jax.common import progress
from uso_jax.common.errors import InputError
from uso_jax.evaluation.benchmark import Benchmark
from uso_jax.evaluation.gallery import Gallery, Sample, unreadable
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics import base
from uso_jax.evaluation.metrics.base import Measure, Metric, Tools, WholeMeasure, value_digest
from uso_jax.evaluation.score_log import Failed, Result, ScoreLog, Skipped, Values, reading

Name = tuple[str, int]
_WHOLE: Name = ("", 0)  # name in the log of results for the set of all images


@dataclass
class Scores:
    """All results for a model's images.

    Attributes:
      figures: values by image, (key, number).
      whole: values for the set of all images.
      skipped: (metric, key, number, reason).
      failed: (metric, key, number, reason).
      requested: metric -> number of images to score, including missing ones.
      scored: metric -> number of images with values.
      identities: metric -> what its values depend on, such as network fingerprints.
      other: the same results under the other rule: the benchmark's own code's, or the strict one with --compat.
    """

    figures: dict[Name, Values] = field(default_factory=dict)
    whole: dict[str, float] = field(default_factory=dict)
    skipped: list[tuple[str, str, int, str]] = field(default_factory=list)
    failed: list[tuple[str, str, int, str]] = field(default_factory=list)
    requested: dict[str, int] = field(default_factory=dict)
    scored: dict[str, int] = field(default_factory=dict)
    identities: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    other: "Scores | None" = None


def choose_metrics(benchmark: Benchmark, names: Sequence[str] | None) -> list[Metric]:
    """Return the named metrics of a benchmark, or all if `names` is empty.

    Raises:
      InputError: the benchmark has no metric of that name.
    """
    known = {metric.name: metric for metric in benchmark.metrics}
    for name in names or ():
        if name not in known:
            raise InputError(f"--metrics: {benchmark.name} has no metric {name!r}; known metrics: {', '.join(known)}")
    return [known[name] for name in (names or known)]


def score_images(
    metrics: Sequence[Metric],
    items: Sequence[EvalItem],
    gallery: Gallery,
    log: ScoreLog,
    tools: Tools,
    *,
    batch_size: int = 32,
    make: Callable[[Metric, Tools], Measure | WholeMeasure] = base.make_measure,
) -> Scores:
    """Score images without a current result and return all results.

    Results are on disk after every batch, so an interrupted run continues where it stopped. Images that cannot be
    decoded move from the gallery's samples to its problems.

    Args:
      metrics: the metrics to apply.
      items: all items of the benchmark.
      gallery: the model's images.
      log: earlier results; new ones are appended.
      tools: networks, judge and files that metrics need.
      batch_size: images per batch.
      make: builds the measure of a metric.

    Raises:
      InputError: a metric cannot be built; this is checked before scoring starts.
    """
    with progress.phase("loading the judges' networks"):
        measures = {metric.name: (metric, make(metric, tools)) for metric in metrics}
    found = Scores(identities={name: dict(measure.identity) for name, (_, measure) in measures.items()})
    for name, (metric, _) in measures.items():
        found.requested[name] = sum(one.num_images for one in items if metric.applies(one))
    single = {name: pair for name, pair in measures.items() if not isinstance(pair[1], WholeMeasure)}
    digests: dict[tuple[str, Name], str] = {}
    read: list[Sample] = []
    with progress.bar(total=len(gallery.samples), desc="scoring", unit="image") as bar:
        for start in range(0, len(gallery.samples), batch_size):
            batch = gallery.samples[start : start + batch_size]
            waiting: dict[str, list[Sample]] = {}
            for name, (metric, _) in single.items():
                asked = [sample for sample in batch if metric.applies(sample.item)]
                digests |= {(name, s.name): value_digest(s, metric, found.identities[name]) for s in asked}
                known = [log.get(s.name, name, digests[name, s.name]) for s in asked]
                again = [x is None or isinstance(reading(x, tools.compat), Failed) for x in known]
                waiting[name] = list(itertools.compress(asked, again))
            # Images with results were decoded before and are not decoded again.
            new = {s.name: s for asked in waiting.values() for s in asked}
            bad = {name: reason for name, s in new.items() if (reason := unreadable(s))}
            gallery.problems |= bad
            for name, asked in waiting.items():
                with progress.phase(f"judging {name}"):
                    _judge(single[name], [s for s in asked if s.name not in bad], log, digests)
            read += [s for s in batch if s.name not in bad]
            (bar.update if new else bar.skip)(len(batch))
    gallery.samples = read
    found.other = Scores(identities=found.identities, requested=found.requested)
    for sample in read:
        for name, (metric, _) in single.items():
            if metric.applies(sample.item):
                result = log.get(sample.name, name, digests[name, sample.name])
                assert result is not None, f"{name} has no result for {sample.name}"
                _add(found, name, sample.name, reading(result, tools.compat))
                _add(found.other, name, sample.name, reading(result, not tools.compat))
    for name, (metric, measure) in measures.items():
        if name not in single:
            with progress.phase(f"judging {name} of all images"):
                _judge_whole(found, metric, measure, gallery.samples, log)
    found.other.whole = found.whole
    return found


def _judge(pair: tuple[Metric, Measure], asked: Sequence[Sample], log: ScoreLog, digests: Mapping) -> None:
    """Apply a metric to samples and log the results."""
    metric, measure = pair
    if asked:
        results = measure(asked)
        log.append(
            metric.name, [(s.name, digests[metric.name, s.name], r) for s, r in zip(asked, results, strict=True)]
        )


def _judge_whole(
    found: Scores, metric: Metric, measure: WholeMeasure, samples: Sequence[Sample], log: ScoreLog
) -> None:
    asked = [sample for sample in samples if metric.applies(sample.item)]
    if not asked:
        return
    digest = ",".join(value_digest(sample, metric, found.identities[metric.name]) for sample in asked)
    digest = hashlib.sha256(digest.encode()).hexdigest()[:16]
    result = log.get(_WHOLE, metric.name, digest)
    if result is None or isinstance(result, Failed):
        result = measure.whole(asked)
        log.append(metric.name, [(_WHOLE, digest, result)])
    if isinstance(result, Skipped | Failed):
        _add(found, metric.name, _WHOLE, result)
    else:
        found.whole |= result
        found.scored[metric.name] = len(asked)


def _add(found: Scores, metric: str, name: Name, result: Result) -> None:
    match result:
        case Skipped(reason):
            found.skipped.append((metric, *name, reason))
        case Failed(reason):
            found.failed.append((metric, *name, reason))
        case _:
            found.figures.setdefault(name, {}).update(result)
            found.scored[metric] = found.scored.get(metric, 0) + 1
