# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Triplets as a TFDS data set with identical images and without TensorFlow; the self-contained page about them."""

import base64
import io
import json
import pickle
import re
import sys
import types

import numpy as np
import pytest
import schemas
from PIL import Image
from reader_cases import CASES, read

from uso_jax.common.errors import InputError
from uso_jax.data import card
from uso_jax.data.drawings.source import ProceduralSource
from uso_jax.data.sources import Mixture, open_source
from uso_jax.data.tfds.records import TripletSet
from uso_jax.data.tfds.writer import prepare

MIXED = ("json", "subjects200k", "omnistyle")


def assert_same(a, b):
    assert (a.prompt, a.layout, a.task) == (b.prompt, b.layout, b.task)
    assert np.array_equal(a.target, b.target) and len(a.styles) == len(b.styles)
    assert (a.content is None and b.content is None) or np.array_equal(a.content, b.content)
    assert all(np.array_equal(x, y) for x, y in zip(a.styles, b.styles, strict=True))


@pytest.mark.parametrize("name", MIXED)
def test_round_trip_of_files(name, tmp_path):
    source = read(name, CASES[name][0](tmp_path / "raw" if (tmp_path / "raw").mkdir() is None else None))
    path = prepare({"train": source}, tmp_path / "data", name)
    kept = open_source({"name": "triplets", "path": str(path)})
    assert len(kept) == len(source) and np.array_equal(kept.sizes(), [_size(source[i]) for i in range(len(source))])
    for index in range(len(source)):
        assert_same(kept[index], source[index])
        assert kept[index].meta == source[index].meta
    assert_same(pickle.loads(pickle.dumps(kept))[0], source[0])
    assert "tensorflow" not in sys.modules or not isinstance(sys.modules["tensorflow"], types.ModuleType)


def _size(triplet):
    content = (0, 0) if triplet.content is None else triplet.content.shape[:2]
    return (*triplet.target.shape[:2], *content)


def test_drawn_ones_splits_and_limit(tmp_path):
    sources = {split: ProceduralSource(size=16, length=9, split=split) for split in ("train", "heldout")}
    path = prepare(sources, tmp_path, "drawn", limit=4)
    for split, source in sources.items():
        kept = TripletSet(path, split)
        assert len(kept) == 4
        assert_same(kept[3], source[3])
        assert kept[3].meta["labels"] == source[3].meta["labels"]
    with pytest.raises(InputError, match="has no split 'test'; it has train, heldout"):
        TripletSet(path, "test")
    with pytest.raises(InputError, match="holds no data set"):
        TripletSet(tmp_path)


def test_unreadable_ones_are_left_out_up_to_a_limit(tmp_path):
    path = schemas.own_json(tmp_path)
    (tmp_path / "images" / "d.jpg").write_bytes(schemas.jpeg("d")[:300])
    with pytest.raises(InputError, match=r"1 triplets cannot be read, and data.max_errors is 0; last error: .*d\.jpg"):
        prepare({"train": read("json", path)}, tmp_path / "a", "x")
    kept = TripletSet(prepare({"train": read("json", path)}, tmp_path / "b", "x", max_errors=1))
    assert len(kept) == len(kept.sizes()) == 4
    assert_same(kept[1], read("json", path)[2])
    with pytest.raises(InputError, match="has no target"):
        (tmp_path / "e").mkdir()
        prepare({"train": read("uso_eval", schemas.uso_eval(tmp_path / "e"))}, tmp_path / "c", "x")


def test_page(tmp_path):
    (tmp_path / "raw").mkdir()
    path = schemas.own_json(tmp_path / "raw")
    items = json.loads(path.read_text())
    items[0]["prompt"] = '<script>alert(1)</script> & "quotes"'
    items.append({"prompt": "x", "target": "images/none.png", "key": "<b>"})
    path.write_text(json.dumps(items))
    made = card.write_card(tmp_path / "out" / "page.html", read("json", path), title="my <set>", sample=100)
    page = (tmp_path / "out" / "page.html").read_text()
    assert made.total == 6 and made.sampled == 5 and len(made.unreadable) == 1
    assert made.counts["task"] == {"style": 2, "style_subject": 2, "text": 1}
    # Nothing of the data becomes markup, and the page may load nothing.
    assert "&lt;script&gt;alert(1)" in page and page.count("<script>") == 1 and "my &lt;set&gt;" in page
    assert "default-src 'none'" in page and not re.search(r'(src|href)="(?!data:)', page)
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(images) == 12
    first = np.asarray(Image.open(io.BytesIO(base64.b64decode(images[0]))))
    assert np.array_equal(first, schemas.decoded("a"))  # small images are shown as they are
    text = made.markdown()
    assert "# my <set>" in text and "6 triplets; shares are computed on 5" in text and "| style_subject | 40% |" in text


def test_page_says_what_was_left_out(tmp_path):
    source = read("uno_1m", schemas.uno_1m(tmp_path))
    made = card.write_card(tmp_path / "page.html", source, title="UNO-1M", sample=2)
    assert made.sampled == 2 and sum(made.left_out.values()) == 8
    assert "4 rows skipped: score is not a number from 0 to 4" in (tmp_path / "page.html").read_text()
    with pytest.raises(InputError, match=r"must end in \.html"):
        card.write_card(tmp_path / "page", source, title="x")
    with pytest.raises(InputError, match="one source of images"):
        card.sample_triplets(Mixture((source, source), (1.0, 1.0)), 3)
    with pytest.raises(InputError, match="at least one triplet"):
        card.sample_triplets(source, 0)
