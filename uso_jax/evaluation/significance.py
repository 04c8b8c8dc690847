# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Is one model better than another? Paired tests over items that both have, and metrics against the known truth.

Differences are taken item by item, so what makes an item hard for both does not count. p is Wilcoxon's signed-rank
test, two-sided, with Holm's correction over the columns of a pair of models.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from uso_jax.evaluation.benchmark import Benchmark

TRUTH = "truth_"  # figures that start so are not learned
_RESAMPLES = 1000
ItemFigures = Mapping[str, Mapping[str, float]]  # item key -> figure -> value


def compare(
    benchmark: Benchmark, models: Mapping[str, ItemFigures], subset_of: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Compare all pairs of models on every column that has figures of its own.

    Args:
      benchmark: whose columns.
      models: by name, the figures of items.
      subset_of: the subset of every item.
    """
    found = []
    for first, second in itertools.combinations(models, 2):
        rows = []
        for column in benchmark.columns:
            value = lambda figures, column=column: [figures[f] for f in column.figures if f in figures]
            keys = [
                key
                for key, figures in models[first].items()
                if (not column.subsets or subset_of[key] in column.subsets)
                and value(figures)
                and value(models[second].get(key, {}))
            ]
            if len(keys) > 1:
                a, b = (np.array([np.mean(value(models[name][key])) for key in keys]) for name in (first, second))
                rows.append({"column": column.name, **difference(column.scale * a, column.scale * b)})
                better = column.higher_is_better
                none = better is None or not rows[-1]["mean"]
                rows[-1]["better"] = None if none else first if (rows[-1]["mean"] > 0) == better else second
        for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p"] = p
        found.append({"first": first, "second": second, "rows": rows})
    return found


def difference(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Give the mean difference of paired values, its bootstrap interval, p, and how often either is higher."""
    found = first - second
    drawn = np.random.default_rng(20_25).integers(len(found), size=(_RESAMPLES, len(found)))
    low, high = np.quantile(found[drawn].mean(axis=1), (0.025, 0.975))
    p = float(stats.wilcoxon(found).pvalue) if np.any(found) else 1.0
    return {
        "n": len(found),
        "mean": float(found.mean()),
        "low": float(low),
        "high": float(high),
        "p": p,
        "higher": int(np.sum(found > 0)),
        "lower": int(np.sum(found < 0)),
    }


def holm(ps: Sequence[float]) -> list[float]:
    """Correct p values of several tests, so that one wrong alarm among all is as rare as one test's."""
    corrected, worst = [0.0] * len(ps), 0.0
    for rank, number in enumerate(np.argsort(ps)):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[number]))
        corrected[number] = worst
    return corrected


def correlations(models: Mapping[str, ItemFigures], subset_of: Mapping[str, str]) -> list[dict[str, Any]]:
    """Give Spearman's rank correlation of every learned figure with every true one, by subset.

    `within` is the mean over models of the correlation among one model's images, `all` that among all models'
    together, which also says whether a metric tells good models from bad ones.
    """
    pairs: dict[tuple[str, str, str], dict[str, list]] = {}
    for model, items in models.items():
        for key, figures in items.items():
            for truth in (name for name in figures if name.startswith(TRUTH)):
                for learned in (name for name in figures if not name.startswith(TRUTH)):
                    values = pairs.setdefault((subset_of[key], learned, truth), {}).setdefault(model, [])
                    values.append((figures[learned], figures[truth]))
    found = []
    for (subset, learned, truth), by_model in pairs.items():
        each = [rho for values in by_model.values() if (rho := _spearman(values)) is not None]
        together = _spearman([pair for values in by_model.values() for pair in values])
        found.append(
            {
                "subset": subset, "metric": learned, "truth": truth, "all": together,
                "within": float(np.mean(each)) if each else None, "n": sum(map(len, by_model.values())),
            }
        )  # fmt: skip
    return found


def _spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    x, y = np.array(pairs).T
    if len(pairs) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(stats.spearmanr(x, y).statistic)
