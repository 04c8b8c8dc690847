# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Apache Beam writes the same data set as a single process."""

import logging

import numpy as np
import pytest
import schemas

from uso_jax.common.errors import InputError
from uso_jax.data.sources import open_source
from uso_jax.data.tfds.records import TripletSet
from uso_jax.data.tfds.writer import prepare

pytest.importorskip("apache_beam", reason='pip install "uso_jax[beam]"')
pytestmark = pytest.mark.filterwarnings("default")  # Beam raises many warnings itself

IN_PROCESS = ("--direct_running_mode=in_memory", "--direct_num_workers=1")


@pytest.fixture(autouse=True)
def quiet():
    before = logging.root.level
    yield
    logging.root.setLevel(before)


def by_beam(specs, *args, **kwargs):
    sources = {split: open_source(spec) for split, spec in specs.items()}
    return prepare(sources, *args, specs=specs, beam_options=IN_PROCESS, **kwargs)


def test_same_set_in_the_same_order(tmp_path):
    specs = {split: dict(name="procedural", size=16, length=90, split=split) for split in ("train", "heldout")}
    path = by_beam(specs, tmp_path / "a", "drawn", limit=80)
    plain = prepare({s: open_source(spec) for s, spec in specs.items()}, tmp_path / "b", "drawn", limit=80)
    for split in specs:
        a, b = TripletSet(path, split), TripletSet(plain, split)
        assert len(a) == len(b) == 80 and np.array_equal(a.sizes(), b.sizes())
        for index in (0, 1, 63, 64, 79):
            assert a[index].key == b[index].key and a[index].meta == b[index].meta
            assert np.array_equal(a[index].target, b[index].target)
            assert np.array_equal(a[index].content, b[index].content)
    assert not list(path.glob("lost_*"))


def test_unreadable_ones(tmp_path):
    path = schemas.own_json(tmp_path)
    (tmp_path / "images" / "d.jpg").write_bytes(schemas.jpeg("d")[:300])
    specs = {"train": dict(name="json", path=str(path))}
    with pytest.raises(InputError, match=r"1 triplets cannot be read, and data.max_errors is 0; last error: .*d\.jpg"):
        by_beam(specs, tmp_path / "a", "x")
    assert not list((tmp_path / "a").rglob("*.array_record*"))
    kept = TripletSet(by_beam(specs, tmp_path / "b", "x", max_errors=1))
    plain = prepare({"train": open_source(specs["train"])}, tmp_path / "c", "x", max_errors=1)
    assert [kept[i].key for i in range(len(kept))] == [TripletSet(plain)[i].key for i in range(len(kept))]
    assert np.array_equal(kept.sizes(), TripletSet(plain).sizes())
