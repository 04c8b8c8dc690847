# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Judging a model's pictures: every metric on every picture that is not judged yet."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from uso_jax.errors import InputError
from uso_jax.evaluation import kinds
from uso_jax.evaluation.benchmark import Benchmark
from uso_jax.evaluation.gallery import Gallery, Sample
from uso_jax.evaluation.item import EvalItem
from uso_jax.evaluation.metric import Measure, Metric, Tools, WholeMeasure, of
from uso_jax.evaluation.score_log import Failed, Result, ScoreLog, Skipped

Name = tuple[str, int]
_WHOLE: Name = ("", 0)  # in the log: what is said of all pictures together


@dataclass
class Scores:
    """What is known of a model's pictures.

    Attributes:
      figures: by picture, (key, number).
      whole: figures of all pictures together.
      skipped, failed: (metric, key, number, reason).
      requested: pictures that each metric was to judge, those that are missing included.
      identities: what each metric's values depend on.
    """

    figures: dict[Name, dict[str, float]] = field(default_factory=dict)
    whole: dict[str, float] = field(default_factory=dict)
    skipped: list[tuple[str, str, int, str]] = field(default_factory=list)
    failed: list[tuple[str, str, int, str]] = field(default_factory=list)
    requested: dict[str, int] = field(default_factory=dict)
    identities: dict[str, Mapping[str, Any]] = field(default_factory=dict)


def choose(benchmark: Benchmark, names: Sequence[str] | None) -> list[Metric]:
    """Give the benchmark's metrics, or those of them that are named."""
    known = {metric.name: metric for metric in benchmark.metrics}
    for name in names or ():
        if name not in known:
            raise InputError(f"--metrics: {benchmark.name} has no metric {name!r}; it has {', '.join(known)}")
    return [known[name] for name in (names or known)]


def score(
    metrics: Sequence[Metric],
    items: Sequence[EvalItem],
    gallery: Gallery,
    log: ScoreLog,
    tools: Tools,
    *,
    batch_size: int = 32,
    make: Callable[[Metric, Tools], Measure | WholeMeasure] = kinds.measure,
) -> Scores:
    """Judge what is not judged yet, and give all that is known.

    What has been judged is on disk after every batch, so a run that is killed goes on where it was.

    Raises:
      InputError: a metric cannot be made, before anything is judged.
    """
    measures = {metric.name: (metric, make(metric, tools)) for metric in metrics}
    found = Scores(identities={name: dict(measure.identity) for name, (_, measure) in measures.items()})
    for name, (metric, _) in measures.items():
        found.requested[name] = sum(one.num_images for one in items if metric.applies(one))
    single = {name: pair for name, pair in measures.items() if not isinstance(pair[1], WholeMeasure)}
    digests: dict[tuple[str, Name], str] = {}
    with tqdm(total=len(gallery.samples), desc="scoring", unit="picture") as bar:
        for start in range(0, len(gallery.samples), batch_size):
            batch = gallery.samples[start : start + batch_size]
            for name, (metric, measure) in single.items():
                asked = [sample for sample in batch if metric.applies(sample.item)]
                digests |= {(name, s.name): of(s, metric, found.identities[name]) for s in asked}
                _judge(metric, measure, asked, log, digests)
            bar.update(len(batch))
    for sample in gallery.samples:
        for name, (metric, _) in single.items():
            if metric.applies(sample.item):
                _add(found, name, sample.name, log.get(sample.name, name, digests[name, sample.name]))
    for name, (metric, measure) in measures.items():
        if name not in single:
            _judge_whole(found, metric, measure, gallery.samples, log)
    return found


def _judge(metric: Metric, measure: Measure, asked: Sequence[Sample], log: ScoreLog, digests: Mapping) -> None:
    """Ask a metric what is not known of samples."""
    known = lambda s: log.get(s.name, metric.name, digests[metric.name, s.name])
    waiting = [s for s in asked if known(s) is None or isinstance(known(s), Failed)]
    if waiting:
        results = measure(waiting)
        entries = [(s.name, digests[metric.name, s.name], r) for s, r in zip(waiting, results, strict=True)]
        log.append(metric.name, entries)


def _judge_whole(
    found: Scores, metric: Metric, measure: WholeMeasure, samples: Sequence[Sample], log: ScoreLog
) -> None:
    asked = [sample for sample in samples if metric.applies(sample.item)]
    if not asked:
        return
    digest = ",".join(of(sample, metric, found.identities[metric.name]) for sample in asked)
    digest = hashlib.sha256(digest.encode()).hexdigest()[:16]
    result = log.get(_WHOLE, metric.name, digest)
    if result is None or isinstance(result, Failed):
        result = measure.whole(asked)
        log.append(metric.name, [(_WHOLE, digest, result)])
    if isinstance(result, Skipped | Failed):
        _add(found, metric.name, _WHOLE, result)
    else:
        found.whole |= result


def _add(found: Scores, metric: str, name: Name, result: Result | None) -> None:
    match result:
        case Skipped(reason):
            found.skipped.append((metric, *name, reason))
        case Failed(reason):
            found.failed.append((metric, *name, reason))
        case None:
            raise AssertionError(f"{metric} said nothing of {name}")
        case _:
            found.figures.setdefault(name, {}).update(result)
