# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tables from figures: published rows from their published parts, and the formula of every protocol."""

import itertools

import numpy as np
import pytest
from scipy import stats

from uso_jax.evaluation import benchmark, significance, summary
from uso_jax.evaluation.benchmark import Column
from uso_jax.evaluation.benchmarks import mico, omnicontext, sconeeval
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics import faces, ocr
from uso_jax.evaluation.metrics.identity_weight import face_weight
from uso_jax.evaluation.metrics.vlm import distinction
from uso_jax.evaluation.scoring import Scores


def rows(found, values, compat=False):
    """Return rows with one image per item: subset -> list of figures."""
    items, scores = [], Scores()
    for subset, many in values.items():
        for number, figures in enumerate(many):
            items.append(EvalItem(f"{subset}/{number}", found.name, subset))
            scores.figures[items[-1].key, 0] = figures
    return summary.rows(found, items, scores, compat)


def value(table, name, digits=2):
    return round(table[name]["value"], digits)


def test_omnicontext_gives_usos_published_average():
    found = omnicontext.BENCHMARK
    published = found.published["USO"]
    # Two items a task whose overall scores have the published mean; pf * sc = overall ** 2.
    tasks = {
        task: [{"pf": (mean + d) ** 2 / 10, "sc": 10.0} for d in (-0.4, 0.4)]
        for task, mean in ((task, published[title]) for task, title in omnicontext.TASKS.items())
    }
    table = summary.table(found.columns, rows(found, tasks))
    assert {title: value(table, title) for title in omnicontext.TASKS.values()} == {
        title: published[title] for title in omnicontext.TASKS.values()
    }
    assert value(table, "Average") == published["Average"] == 5.35
    assert table["Average"]["low"] < table["Average"]["value"] < table["Average"]["high"]


def test_omnicontexts_item_score_is_a_root():
    one = EvalItem("a", "omnicontext", "single_object")
    assert omnicontext.overall(one, {"pf": 4.0, "sc": 9.0}, False) == {"overall": 6.0}
    assert omnicontext.overall(one, {"pf": 4.0}, False) == {}


def test_sconeeval_gives_usos_published_row():
    found, published = sconeeval.BENCHMARK, sconeeval.BENCHMARK.published["USO"]
    tasks = {}
    for task in (*sconeeval.COMPOSITION, *sconeeval.DISTINCTION):
        figures = {"pf": published[sconeeval._COM[task]] ** 2 / 10, "sc": 10.0}
        if task in sconeeval.DISTINCTION:
            mean = published[sconeeval._DIS[task]]
            figures |= {"accuracy": mean + 0.7, "f1": mean - 0.7}
        tasks[task] = [figures]
    table = summary.table(found.columns, rows(found, tasks))
    # The parts are rounded to hundredths, so their mean is known to half of one: COM is 6.415, published as 6.41.
    for name, wanted in (("COM", 6.41), ("DIS", 6.71), ("Overall", 6.56)):
        assert table[name]["value"] == pytest.approx(wanted, abs=0.00501)


def test_a_combined_column_needs_all_its_parts():
    found = sconeeval.BENCHMARK
    table = summary.table(found.columns, rows(found, {"composition_single": [{"pf": 4.0, "sc": 4.0}]}))
    assert "COM" not in table and "Overall" not in table and value(table, "COM comp. single") == 4


def test_distinction_is_sklearns_definition():
    for said, labels in itertools.product(itertools.product((0, 1), repeat=3), repeat=2):
        got = distinction([bool(x) for x in said], [bool(x) for x in labels])
        right, yes, true = (sum(map(int.__and__, said, labels)), sum(said), sum(labels))
        precision, recall = right / yes if yes else 0, right / true if true else 0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0
        assert got == pytest.approx({
            "accuracy": 10 * np.mean(np.equal(said, labels)), "precision": 10 * precision, "recall": 10 * recall,
            "f1": 10 * f1,
        })  # fmt: skip


def test_mico_multiplies_and_weighs_tasks_by_their_size():
    found = mico.BENCHMARK
    cases = {
        "object_centric": [{"weight": 0.5, "sc": 8.0, "pq": 9.0}] * 3,
        "hoi": [{"weight": 1.0, "sc": 5.0, "pq": 4.0}],
    }
    table = summary.table(found.columns, rows(found, cases))
    assert value(table, "Object") == 36 and value(table, "HOI") == 20 and value(table, "Overall") == 32
    lacking = {"hoi": [{"sc": 5.0, "pq": 4.0}, {"weight": 0.5, "sc": 5.0, "pq": 4.0}, {"weight": 1.0}]}
    strict, compat = (summary.table(found.columns, rows(found, lacking, c), compat=c) for c in (False, True))
    assert strict["HOI"] | {"value": 0} == {"value": 0, "low": 10, "high": 10, "n": 1} and value(strict, "HOI") == 10
    assert value(compat, "HOI") == 15  # a missing weight is 1; without sc and pq a case is left out


@pytest.mark.parametrize(
    ("cosine", "weight"), [(0.46, 1), (0.45, 1), (0.44, 0.7), (0.2, 0.5), (0.05, 0.2), (0.049, 0), (-1.0, 0)]
)
def test_mico_weighs_faces(cosine, weight):
    assert face_weight(cosine) == weight


def test_multiid_leaves_outliers_out_in_compat_only():
    found = benchmark.by_name("multiid")
    names = [f"sim_gt_{network}" for network in ("arcface", "facenet", "adaface")]
    people = {"p1": [dict.fromkeys(names, x) for x in (0.4, 0.41, 0.42, 0.43, -0.9)]}
    strict, compat = (summary.table(found.columns, rows(found, people), compat=c) for c in (False, True))
    assert value(strict, "Sim(GT)", 4) == round((0.4 + 0.41 + 0.42 + 0.43 - 0.9) / 5, 4)
    assert value(compat, "Sim(GT)", 4) == 0.415


def test_outliers_that_are_most_values_give_the_median():
    values = np.array([[[0.0], [0.0], [0.0], [5.0]]])
    assert summary._mean(values, True)[0] == 0
    rng = np.random.default_rng(0)
    flat = rng.normal(size=40) ** 3
    low, high = np.percentile(flat, (25, 75))
    kept = flat[(flat >= low - 1.5 * (high - low)) & (flat <= high + 1.5 * (high - low))]
    assert len(kept) < 40
    np.testing.assert_allclose(summary._mean(flat[None, :, None], True)[0], kept.mean())


def test_copy_paste_runs_from_the_target_to_the_reference():
    unit = lambda degrees: np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
    target, reference = unit(0), unit(60)
    for degrees, wanted in ((60, 1), (0, -1), (30, 0), (45, 0.5)):
        assert faces.copy_paste(unit(degrees), target, reference) == pytest.approx(wanted, abs=1e-6)
    assert faces.copy_paste(unit(10), target, target) == 0


def test_faces_are_assigned_as_a_whole():
    eye = np.eye(3)
    made = np.stack([0.6 * eye[0] + 0.8 * eye[1], eye[0]])
    # The first face is nearest to the second person only if the other takes the first.
    assert [(i, j) for i, j, _ in faces.match(made, eye[:2])] == [(0, 1), (1, 0)]
    got = faces.figures(made, eye[:2], eye[:2])
    assert got["sim_gt"] == got["sim_ref"] == pytest.approx(0.9) and got["blending"] == pytest.approx(0.3)


def test_read_lines_are_compared_by_the_best_assignment():
    got = ocr.compare(["Sommer Sale", "50 %"], ["50%", "sommer salt", "x"])
    assert got["sen_acc"] == 0.5 and got["ned"] == pytest.approx((1 + 9 / 10) / 2)
    assert ocr.compare(["a"], []) == {"sen_acc": 0, "ned": 0}


def test_groups_and_several_images_of_an_item():
    column = Column("by subject", ("x",), by="who")
    items = [EvalItem(str(n), "dreambench", "single", num_images=2, meta={"who": who}) for n, who in enumerate("aab")]
    scores = Scores()
    scores.figures = {("0", 0): {"x": 1.0}, ("0", 1): {"x": 3.0}, ("1", 0): {"x": 4.0}, ("2", 0): {"x": 10.0}}
    known = summary.rows(benchmark.by_name("dreambench"), items, scores, False)
    table = summary.table([column], known)
    assert table["by subject"]["value"] == ((2 + 4) / 2 + 10) / 2 and table["by subject"]["n"] == 3


def test_the_interval_is_that_of_the_mean():
    found = benchmark.by_name("triplets")
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    cell = summary.table([Column("x", ("x",))], rows(found, {"a": [{"x": float(v)} for v in values]}))["x"]
    half = 1.96 * values.std(ddof=1) / 20
    assert cell["low"] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert cell["high"] == pytest.approx(values.mean() + half, abs=0.1 * half)


# ---------------------------------------------------------------------------------------------------- models


def test_models_are_compared_item_by_item():
    found, rng = benchmark.by_name("triplets"), np.random.default_rng(0)
    hard = rng.normal(size=60)
    models = {
        name: {str(n): {"clip": float(x), "lpips": float(y)} for n, (x, y) in enumerate(zip(a, b, strict=True))}
        for name, a, b in (
            ("one", hard + 0.1 + 0.01 * rng.normal(size=60), hard),
            ("two", hard, hard + rng.normal(size=60)),
        )
    }
    subset_of = {str(n): "s" for n in range(60)}
    (pair,) = significance.compare(found, models, subset_of)
    by_column = {row["column"]: row for row in pair["rows"]}
    row = by_column["CLIP score"]
    assert row["better"] == "one" and row["p"] < 1e-6 and row["low"] < row["mean"] < row["high"]
    assert row["mean"] == pytest.approx(10, abs=0.5)  # in the column's scale
    assert (
        stats.ttest_ind(*[[f["clip"] for f in m.values()] for m in models.values()]).pvalue > 0.1
    )  # unpaired: nothing
    assert by_column["LPIPS"]["p"] > 0.05


def test_holm():
    assert significance.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert significance.holm([]) == []


def test_correlation_with_the_truth():
    items = {str(n): {"truth_mse": float(n), "good": float(-(n**3)), "flat": 1.0} for n in range(6)}
    found = {row["metric"]: row for row in significance.correlations({"m": items}, dict.fromkeys(items, "s"))}
    assert found["good"]["all"] == found["good"]["within"] == pytest.approx(-1) and found["flat"]["all"] is None
