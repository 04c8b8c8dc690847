# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Scores that are no networks: programs, and exact measures of drawings."""

import shlex
import sys

import numpy as np
import pytest

from uso_jax.common.errors import InputError
from uso_jax.data.drawings.source import ProceduralSource
from uso_jax.data.triplet import Triplet
from uso_jax.training import black_boxes
from uso_jax.training.black_boxes import Wanted

SOURCE = ProceduralSource(seed=2, size=16, preserved=1.0)
WANTED = [Wanted(SOURCE[i], SOURCE) for i in (0, 0, 1)]
IMAGES = np.stack([one.triplet.target for one in WANTED])


def program(text):
    return f"command:{shlex.quote(sys.executable)} -c {shlex.quote(text)}"


def test_a_program_scores_files():
    text = (
        "import json, sys\n"
        "from PIL import Image\n"
        "for line in sys.stdin:\n"
        "    row = json.loads(line)\n"
        "    parts = [row['image'], row['content'], *row['styles']]\n"
        "    print(sum(Image.open(part).size[0] for part in parts) + len(row['prompt']) / 100)\n"
    )
    found = black_boxes.score(program(text), IMAGES, WANTED)
    np.testing.assert_allclose(found, [48 + len(one.triplet.prompt) / 100 for one in WANTED])


def test_an_answer_that_is_no_number_is_no_score():
    found = black_boxes.score(program("print('1.5\\nsorry\\ninf')"), IMAGES, WANTED)
    np.testing.assert_array_equal(found, [1.5, np.nan, np.nan])


@pytest.mark.parametrize(
    "name, words",
    [
        (program("print(1)"), "1 numbers for 3 images"),
        (program("import sys; sys.exit('no model')"), "exit code 1: no model"),
        ("command:/does/not/exist", "cannot be run"),
        ("command:'", "cannot be run"),
    ],
)
def test_a_program_that_fails_is_named(name, words):
    with pytest.raises(InputError, match=words):
        black_boxes.score(name, IMAGES, WANTED)


def test_a_program_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(black_boxes, "_SECONDS", 0.2)
    with pytest.raises(InputError, match="took longer"):
        black_boxes.score(program("import time; time.sleep(60)"), IMAGES, WANTED)


def test_exact_scores_are_positive_for_targets_only():
    for name in ("true_style", "true_content"):
        assert (black_boxes.score(name, IMAGES, WANTED) > 0).all()
    contents = np.stack([one.triplet.content for one in WANTED])
    assert (black_boxes.score("true_style", contents, WANTED) < 0).all()
    others = np.stack([SOURCE.counterfactuals(one.triplet)[0][5] for one in WANTED])
    assert (black_boxes.score("true_content", others, WANTED) < 0).all()


def test_exact_scores_need_drawings():
    image = IMAGES[0]
    triplet = Triplet("a cat", image, (image,), image, "style_subject", "preserved", "files/1")
    with pytest.raises(InputError, match="files/1: exact scores need drawings"):
        black_boxes.score("true_style", IMAGES[:1], [Wanted(triplet, [triplet])])


def test_names():
    assert black_boxes.is_known("true_style") and black_boxes.is_known("command:x") and not black_boxes.is_known("x")
