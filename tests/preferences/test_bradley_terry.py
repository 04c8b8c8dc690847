# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The scorer: what a hidden rule prefers is found again, and its file is read with suspicion."""

import json

import numpy as np
import pytest
from scipy.special import expit

from uso_jax.common.errors import InputError
from uso_jax.preferences import bradley_terry
from uso_jax.preferences.scorer import Scorer

BLOCKS = [1, 12, 12, 1, 12, 12]


def judged(pairs, each=5, noise=False, seed=0, blocks=BLOCKS):
    """Return differences, verdicts by a hidden linear rule, and the names of groups of `each` pairs."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(pairs, sum(blocks))) * draw.uniform(0.01, 10, sum(blocks))
    hidden = draw.normal(size=sum(blocks)) / x.std(axis=0)
    margin = x @ hidden
    better = margin > 0 if not noise else draw.random(pairs) < expit(margin)
    return x, better.astype(float), [f"joint/00000/{i // each}" for i in range(pairs)]


def test_a_hidden_rule_is_found():
    x, better, groups = judged(500)
    found = bradley_terry.fit(x, better, groups, BLOCKS)
    assert 60 <= found.heldout.sum() <= 140 and found.fitted + found.heldout.sum() == 500
    assert found.accuracy >= 0.9
    assert found.accuracy == bradley_terry.accuracy((x @ found.weights)[found.heldout], better[found.heldout])


def test_held_out_groups_are_whole_and_do_not_matter():
    x, better, groups = judged(300)
    found = bradley_terry.fit(x, better, groups, BLOCKS)
    held = found.heldout
    assert not {g for g, h in zip(groups, held, strict=True) if h} & {
        g for g, h in zip(groups, held, strict=True) if not h
    }
    again = bradley_terry.fit(x, np.where(held, 1 - better, better), groups, BLOCKS)
    np.testing.assert_array_equal(again.weights, found.weights)
    assert again.accuracy == pytest.approx(1 - found.accuracy)


def test_verdicts_by_chance_are_penalised():
    x, _, groups = judged(300)
    random = np.random.default_rng(1).integers(0, 2, 300).astype(float)
    found = bradley_terry.fit(x, random, groups, BLOCKS)
    assert found.penalty == max(bradley_terry.PENALTIES) and abs(found.accuracy - 0.5) < 0.25


def test_few_pairs_suffice_where_one_reward_decides():
    """A block of one number has as much room as one of a thousand, so it is found among them."""
    blocks = [1, 500, 500]
    x = np.random.default_rng(0).normal(size=(120, sum(blocks)))
    found = bradley_terry.fit(x, (x[:, 0] > 0).astype(float), [str(i // 2) for i in range(120)], blocks)
    assert found.accuracy >= 0.9


def test_the_solution_is_that_of_the_equation():
    """The gradient of Eq. (2) is 0, by finite differences of the equation as it is written."""
    x, better, _ = judged(60, noise=True, blocks=[1, 3])
    better[:5] = 0.5
    w = bradley_terry._minimise(x, better, 0.7)

    def cost(w):
        p = expit(x @ w)
        return -(better * np.log(p) + (1 - better) * np.log(1 - p)).sum() + 0.35 * w @ w

    for direction in np.eye(4) * 1e-4:
        assert cost(w) < min(cost(w + direction), cost(w - direction))


def test_what_never_differs_has_no_weight():
    x, better, groups = judged(200)
    x[:, 3] = 0
    assert bradley_terry.fit(x, better, groups, BLOCKS).weights[3] == 0


def test_accuracy_leaves_out_what_a_person_could_not_say():
    scores, better = np.array([1.0, -1.0, 0.0, 2.0]), np.array([1.0, 1.0, 0.0, 0.5])
    assert bradley_terry.accuracy(scores, better) == pytest.approx(0.5)


@pytest.mark.parametrize("pairs, each, undecided", [(2, 1, 0), (19, 1, 0), (200, 50, 0), (200, 5, 190)])
def test_too_few_pairs_are_refused(pairs, each, undecided):
    x, better, groups = judged(pairs, each)
    better[:undecided] = 0.5
    with pytest.raises(InputError, match=r"too few to fit.*judge more"):
        bradley_terry.fit(x, better, groups, BLOCKS)


# ---------------------------------------------------------------------------------------------------- file

GOOD = dict(
    rewards={"csd_style": 2}, weights=[0.5] * 5, offset=0.25, networks={"csd": "ab"}, pairs=(30, 8), accuracy=0.75
)


def test_a_scorer_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "scorer.json"
    Scorer(**GOOD).write(path)
    assert Scorer.read(path) == Scorer(**GOOD)
    with pytest.raises(InputError, match="exists; choose another"):
        Scorer(**GOOD).write(path)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"weights": [1.0]}, "1 weights for 5 features"),
        ({"weights": "many"}, "weights"),
        ({"rewards": {}}, "damaged"),
        ({"rewards": {"csd_style": -1}}, "damaged"),
        ({"format": "x"}, "has the format 'x'"),
        ({"offset": None}, "offset"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, changes, words):
    path = tmp_path / "scorer.json"
    Scorer(**GOOD).write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=f"{words}.*fit the scorer again"):
        Scorer.read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.json does not exist: fit a scorer"):
        Scorer.read(tmp_path / "none.json")
