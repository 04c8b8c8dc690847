# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Batches: shapes, absent conditions, exact resume, sharding, errors."""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import multiprocessing

import numpy as np
import pytest
import tiny

from uso_jax.common.errors import BadExample, InputError
from uso_jax.common.schema import override
from uso_jax.data.drawings.source import ProceduralSource
from uso_jax.data.loader import batches
from uso_jax.data.sources import Mixture, open_source
from uso_jax.data.triplet import Triplet
from uso_jax.images import decode

SIZES = {"target_size": (16, 24), "content_size": (8, 8), "style_size": (12, 10), "num_styles": 2}


class Numbered:
    """Example i is an image of value i, with i % 3 style images, and content where i is even."""

    def __init__(self, length, bad=()):
        self.length, self.bad = length, bad

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.bad:
            raise BadExample(f"example {index} is bad: replace it.")
        image = np.full((16, 16, 3), index, np.uint8)
        content, styles = (image if index % 2 == 0 else None), (image,) * (index % 3)
        task = {(True, True): "style_subject", (True, False): "subject", (False, True): "style", (False, False): "text"}
        task = task[content is not None, bool(styles)]
        return Triplet(str(index), content, styles, image, task, "shifted", str(index))


def number(prompt):
    return {"ids": np.array([int(prompt)], np.int32)}


def letters(prompt):
    return {"ids": np.frombuffer(prompt.ljust(80).encode()[:80], np.uint8).astype(np.int32)}


def stream(source, **options):
    return batches(source, **({"batch_size": 4, "seed": 0, "tokenize": number, **SIZES} | options))


def ids(dataset, count=None):
    return [batch["ids"][:, 0].tolist() for batch in itertools.islice(dataset, count)]


def test_shapes_and_absent_conditions():
    (batch,) = itertools.islice(stream(Numbered(6), batch_size=6, shuffle=False), 1)
    shapes = {name: (value.shape, value.dtype) for name, value in batch.items()}
    assert shapes == {
        "target": ((6, 16, 24, 3), np.uint8),
        "content": ((6, 8, 8, 3), np.uint8),
        "content_valid": ((6,), bool),
        "style": ((6, 2, 12, 10, 3), np.uint8),
        "style_valid": ((6, 2), bool),
        "subject_label": ((6,), np.int32),
        "style_label": ((6,), np.int32),
        "ids": ((6, 1), np.int32),
    }
    for index in range(6):
        assert (batch["target"][index] == index).all()
        assert batch["content_valid"][index] == (index % 2 == 0)
        assert (batch["content"][index] == (index if index % 2 == 0 else 0)).all()
        assert batch["style_valid"][index].tolist() == [slot < index % 3 for slot in range(2)]
        assert (batch["style"][index] == index * batch["style_valid"][index][:, None, None, None]).all()


def test_six_batches_equal_three_and_three_resumed():
    source = ProceduralSource(size=16, length=10)  # several epochs pass
    options = {"batch_size": 4, "tokenize": letters, "seed": 5}
    whole = list(itertools.islice(stream(source, **options), 6))
    first = iter(stream(source, **options))
    halves = [next(first) for _ in range(3)]
    state = json.loads(json.dumps(first.get_state()))
    second = iter(stream(source, **options, num_threads=1))
    second.set_state(state)
    halves += [next(second) for _ in range(3)]
    for a, b in zip(whole, halves, strict=True):
        assert set(a) == set(b) and all(np.array_equal(a[name], b[name]) for name in a)


def test_epochs_are_whole_and_reshuffled():
    order = np.concatenate(ids(stream(Numbered(8)), 6)).reshape(3, 8)
    assert all(sorted(epoch) == list(range(8)) for epoch in order.tolist())
    assert len({tuple(epoch) for epoch in order.tolist()}) == 3
    assert ids(stream(Numbered(8)), 2) == order[0].reshape(2, 4).tolist()
    assert ids(stream(Numbered(8), seed=1), 2) != order[0].reshape(2, 4).tolist()


def test_without_shuffle_and_repeat_the_remainder_is_dropped():
    assert ids(stream(Numbered(10), shuffle=False, repeat=False)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_batch_may_exceed_the_source_when_it_repeats():
    (first,) = ids(stream(Numbered(3), batch_size=7), 1)
    assert len(first) == 7 and sorted(first[:3]) == sorted(first[3:6]) == [0, 1, 2]


@pytest.mark.parametrize("repeat", [True, False])
def test_processes_share_the_global_order(repeat):
    one = ids(stream(Numbered(11), repeat=repeat), 7)
    two = [ids(stream(Numbered(11), repeat=repeat, process_index=index, process_count=2), 7) for index in range(2)]
    assert len(one) == (7 if repeat else 2)
    assert [a + b for a, b in zip(*two, strict=True)] == one


class Shapes(Numbered):
    """Numbered images of several shapes; content has another shape than the target."""

    SIDES = ((16, 16), (16, 48), (48, 16), (18, 15))

    def __getitem__(self, index):
        triplet = super().__getitem__(index)
        paint = lambda shape: np.full((*shape, 3), index, np.uint8)
        sides = [self.SIDES[(index * k) % 4] for k in (1, 3)]
        content = None if triplet.content is None else paint(sides[1])
        return dataclasses.replace(triplet, target=paint(sides[0]), content=content)


BUCKETS = {
    "target_sizes": ((16, 16), (12, 24)),
    "content_sizes": ((8, 8), (16, 8)),
    "smaller_sizes": (((8, 8), (6, 12)),),
}


def wild():
    """Return two sources of several shapes with some unreadable examples."""
    return Mixture((Shapes(21, bad=(4,)), Shapes(40, bad=(13, 14))), (1.0, 3.0))


def record(batch):
    """Return each example of a batch as text that identifies its content and shape."""
    rows = [{name: value[i] for name, value in batch.items()} for i in range(len(batch["ids"]))]
    return [
        hashlib.sha256(
            b"".join(k.encode() + r[k].tobytes() + bytes(str(r[k].shape), "ascii") for k in sorted(r))
        ).hexdigest()
        for r in rows
    ]


def records(count, start=None, **options):
    reading = iter(stream(wild(), **({"max_errors": 9} | BUCKETS | options)))
    if start is not None:
        reading.set_state(start)
    with contextlib.closing(reading):
        found = [record(batch) for batch in itertools.islice(reading, count)]
        return found, reading.get_state()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("hosts", [1, *(pytest.param(count, marks=pytest.mark.slow) for count in (2, 4))])
def test_any_hosts_and_workers_and_a_resume_see_the_same_records(hosts, num_workers):
    whole, _ = records(8)
    at = int(np.random.default_rng().integers(1, 8))
    parts = []
    for host in range(hosts):
        options = {"process_index": host, "process_count": hosts, "num_workers": num_workers}
        first, state = records(at, **options)
        # The rest is read in another way than the beginning.
        rest, _ = records(8 - at, json.loads(json.dumps(state)), **options | {"num_workers": 0, "num_threads": 1})
        parts.append(first + rest)
    joined = [list(itertools.chain(*step)) for step in zip(*parts, strict=True)]
    assert joined == whole, f"resumed at {at}"


def test_buckets_hold_what_fits_them():
    reading = stream(Shapes(40), batch_size=4, **BUCKETS)
    seen = {}
    for batch in itertools.islice(reading, 30):
        size = batch["target"].shape[1:3], batch["content"].shape[1:3]
        seen.setdefault(size, set()).update(batch["ids"][:, 0].tolist())
    # Targets of index 0 and 3 modulo 4 are squarish; tall ones (2) are nearer to the square than to the wide bucket.
    assert {i for size, found in seen.items() if size[0] == (12, 24) for i in found} == set(range(1, 40, 4))
    # Without content the target's shape counts, which is never tall there.
    assert {i for size, found in seen.items() if size[1] == (16, 8) for i in found} == set(range(2, 40, 4))
    assert set().union(*seen.values()) == set(range(40))


def test_a_mixture_keeps_its_weights():
    counts = collections.Counter()
    mixture = Mixture((Numbered(10), Shapes(200)), (1.0, 3.0))
    for batch in itertools.islice(stream(mixture, batch_size=8, **BUCKETS), 100):
        counts.update((batch["ids"][:, 0] < 10).tolist())
    assert 0.2 < counts[True] / 800 < 0.32  # a quarter, and 1 in 20 of the second source's


def test_unreadable_examples_are_replaced_counted_and_limited(caplog):
    bad = tuple(range(3, 12, 3))
    whole = iter(stream(Numbered(12, bad=bad), max_errors=3))
    seen = ids(whole, 6)
    assert not {i for batch in seen for i in batch} & set(bad) and whole.get_state()["skipped"] == [
        [0, 3],
        [0, 6],
        [0, 9],
    ]
    assert len(caplog.messages) == 3 and "3 of at most 3): example" in caplog.messages[-1]
    again = iter(stream(Numbered(12, bad=bad), max_errors=3))
    again.set_state({"next_index": 4, "skipped": [[0, 3], [0, 6], [0, 9]]})
    assert ids(again, 2) == seen[4:] and len(caplog.messages) == 3
    with pytest.raises(
        InputError, match=r"3 examples cannot be read, and data.max_errors is 2; last error: example \d"
    ):
        ids(stream(Numbered(12, bad=bad), max_errors=2), 6)
    with pytest.raises(InputError, match="8 examples in a row cannot be read"):
        ids(stream(Numbered(12, bad=tuple(range(12))), max_errors=20), 1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_of_workers_are_the_users(num_workers):
    with pytest.raises(InputError, match="example 2 is bad: replace it") as caught:
        ids(stream(Numbered(6, bad=(2,)), shuffle=False, num_workers=num_workers), 1)
    assert isinstance(caught.value, InputError)


def test_a_killed_worker_is_explained():
    reading = iter(stream(Numbered(64), num_workers=1))
    next(reading)
    for process in multiprocessing.active_children():
        if process.name.startswith("grain"):
            process.kill()
    with pytest.raises(InputError, match=r"exit code -9; .*ran out of memory.*num_workers.*The same command continues"):
        for _ in range(50):
            next(reading)


def test_bad_example_is_an_input_error():
    with pytest.raises(InputError) as caught:
        ids(stream(Numbered(6, bad=(2,)), shuffle=False), 1)
    assert type(caught.value) is BadExample and str(caught.value) == "example 2 is bad: replace it."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": Numbered(0)}, "source is empty"),
        ({"batch_size": 5, "process_count": 2}, "positive multiple"),
        ({"process_index": 2, "process_count": 2}, "process_index 2"),
        ({"batch_size": 9, "repeat": False}, "exceeds the 8 examples"),
        ({"num_styles": 1}, "num_styles is 1"),
        ({"tokenize": lambda prompt: {"target": np.zeros(1)}}, "tokenize returns target"),
    ],
)
def test_wrong_options(options, message):
    source = options.pop("source", Numbered(8))
    with pytest.raises(InputError, match=message):
        next(iter(stream(source, **options)))


def test_open_source():
    source = open_source({"name": "procedural", "split": "heldout", "length": 7})
    assert (source.split, len(source)) == ("heldout", 7)
    with pytest.raises(InputError, match="unknown data source 'web'; use one of procedural, emoji, json"):
        open_source({"name": "web"})
    with pytest.raises(InputError, match="'procedural': got an unexpected keyword argument 'lenght'"):
        open_source({"name": "procedural", "lenght": 7})
    with pytest.raises(InputError, match="'json': missing a required argument: 'path'"):
        open_source({"name": "json"})


def test_cover_crops_the_centre_and_squash_does_not():
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 10:30] = 255
    assert (decode.cover(image, (20, 20)) == 255).all()
    assert decode.cover(image, (20, 40)) is image
    assert 0.4 < decode.squash(image, (20, 20)).mean() / 255 < 0.6


def test_sections_of_the_configuration_share_nothing():
    config = override(tiny._USO["get_config"]("flux_dev"), {"data.uno.train.path": "somewhere"})
    sections = config.data.sections
    assert sections.pop("uno")["train"]["path"] == "somewhere"
    others = [section for section in sections.values() if "train" in section]
    assert len(others) > 10 and not [section for section in others if section["train"].get("path") == "somewhere"]
