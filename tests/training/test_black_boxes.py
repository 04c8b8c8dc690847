# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Scores that are no networks: programs, and exact measures of drawings."""

import base64
import dataclasses
import io
import shlex
import sys

import fake_vlm
import numpy as np
import pytest
from PIL import Image

from uso_jax.common.errors import InputError
from uso_jax.data.drawings.source import ProceduralSource
from uso_jax.data.triplet import Triplet
from uso_jax.training import black_boxes
from uso_jax.training.black_boxes import Wanted
from uso_jax.training.vlm_scores import VlmScores
from uso_jax.vlm.client import Vlm
from uso_jax.vlm.config import VlmConfig

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


# ---------------------------------------------------------------------------------------------------- models


def ask(reply, tmp_path, name, **settings):
    """Return the scores by an endpoint that answers so, and what it was asked."""
    with fake_vlm.serve(reply) as endpoint:
        config = VlmConfig(model="judge", base_url=endpoint.url, backoff=0.01, tries=1, takes=1, **settings)
        scores = VlmScores(config, Vlm.configured(config, tmp_path, 0, "--config"))
        return black_boxes.score(name, IMAGES, WANTED, scores.score), endpoint.asked


def _decoded(url):
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return np.asarray(image).tobytes()


def test_a_model_compares_with_the_right_reference(tmp_path):
    found, asked = ask(lambda body: 'Well: {"score": 7}', tmp_path, "vlm_style")
    np.testing.assert_allclose(found, 0.7)
    pairs = {tuple(_decoded(url) for url in fake_vlm.images_of(body)) for body in asked}
    assert pairs == {(one.triplet.styles[0].tobytes(), one.triplet.target.tobytes()) for one in WANTED}
    again, asked = ask(lambda body: '{"score": 0}', tmp_path, "vlm_style")
    np.testing.assert_array_equal(again, found)  # the same questions are answered by the cache
    assert not asked


def test_answers_that_mean_nothing_are_no_scores(tmp_path):
    found, _ = ask(lambda body: '{"score": 11}', tmp_path, "vlm_subject", max_failures=1)
    assert np.isnan(found).all()
    without = [Wanted(dataclasses.replace(one.triplet, prompt=""), SOURCE) for one in WANTED]
    scores = VlmScores(VlmConfig(model="judge"), Vlm("judge"))
    assert np.isnan(black_boxes.score("vlm_prompt", IMAGES, without, scores.score)).all()  # nothing to ask about


def test_a_model_that_is_away_ends_the_run(tmp_path):
    with pytest.raises(InputError, match="did not answer 2 questions in a row"):
        ask(lambda body: (503, "away", {}), tmp_path, "vlm_subject", max_failures=2, threads=1)
