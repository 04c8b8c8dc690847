# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Swapped content and target, from every kind of source."""

import json

import numpy as np
import pytest
import tiny
from PIL import Image

from uso_jax.common.errors import InputError
from uso_jax.data.loader import batches
from uso_jax.data.sources import open_source
from uso_jax.training.validation import pipeline_options

DRAWN = dict(name="procedural", size=16, length=8)


def test_exchanged():
    plain, swapped = open_source(DRAWN), open_source(DRAWN, {"swapped": True, "tasks": {"style_subject": 1.0}})
    a, b = plain[3], swapped[3]
    assert np.array_equal(a.content, b.target) and np.array_equal(a.target, b.content)
    assert (b.styles, b.task, b.layout, b.prompt) == ((), "subject", a.layout, a.prompt)
    assert b.meta["labels"] == {"subject": a.meta["labels"]["subject"]} and a.key != b.key
    with pytest.raises(InputError, match="has no content image, so it cannot be swapped"):
        open_source(DRAWN, {"swapped": True, "tasks": {"text": 1.0}})[0]
    mixture = open_source({"name": "mixture", "parts": [DRAWN | {"weight": 1.0}]}, {"swapped": True})
    assert np.array_equal(mixture.sources[0][3].target, a.content)


def test_files_of_two_shapes(tmp_path):
    items = []
    for number in range(16):
        for part, size in (("t", (16, 16)), ("c", (24, 12))):  # width, height
            noise = np.random.default_rng([number, len(part)]).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
            Image.fromarray(noise).save(tmp_path / f"{part}{number}.png")
        items.append(dict(target=f"t{number}.png", content=f"c{number}.png", prompt=f"number {number}"))
    (tmp_path / "items.json").write_text(json.dumps(items))
    paths = {f"data.json.{split}.path": str(tmp_path / "items.json") for split in ("train", "heldout")}
    run = tiny.config("joint", changes={"data.source": "json"} | paths, data=dict(swapped=True))
    stage = run.run_stages[0]
    source = open_source(run.data.train, stage.data)
    assert source.sizes().tolist() == [[12, 24, 16, 16]] * 16
    batch = next(iter(batches(source, batch_size=8, seed=0, shuffle=False, **pipeline_options(run, stage))))
    assert np.array_equal(batch["content"][2], np.asarray(Image.open(tmp_path / "t2.png")))
    assert batch["content_valid"].all() and not batch["style_valid"].any()
