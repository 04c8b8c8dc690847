# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Significance of differences between models, and correlation of learned metrics with exact ones.

Models are compared on the items that both have, by paired differences. p values are from the two-sided Wilcoxon
signed-rank test with Holm's correction over the columns of a pair of models.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from uso_jax.evaluation.benchmark import Benchmark

TRUTH = "truth_"  # prefix of exact figures, which no network computes
_RESAMPLES = 1000
ItemFigures = Mapping[str, Mapping[str, float]]  # item key -> figure -> value


def compare(
    benchmark: Benchmark, models: Mapping[str, ItemFigures], subset_of: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Compare all pairs of models on every column with figures.

    Args:
      benchmark: defines the columns.
      models: model -> item key -> figure -> value.
      subset_of: item key -> subset.

    Returns:
      For each pair, {"first", "second", "rows"} as JSON; a row is the result of `difference`, with the corrected p,
      the column and the name of the better model, or None.
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
    """Return the mean of first - second over pairs, its 95 % bootstrap interval, p, and how often each is higher."""
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
    """Return p values adjusted by Holm's method, which bounds the family-wise error rate."""
    corrected, worst = [0.0] * len(ps), 0.0
    for rank, number in enumerate(np.argsort(ps)):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[number]))
        corrected[number] = worst
    return corrected


def correlations(models: Mapping[str, ItemFigures], subset_of: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return Spearman's rank correlation of every learned figure with every exact one, by subset.

    `within` is the mean over models of the correlation among one model's items. `all` is the correlation among the
    items of all models, which also measures whether a metric separates good models from bad ones.
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
