# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The queue: batches, order, deadlines, failures and the end, with a pipeline that only notes its calls."""

import threading
import time
import types

import pytest
from PIL import Image

from uso_jax.common.errors import InputError
from uso_jax.inference.options import GenerationOptions
from uso_jax.inference.pipeline import USOPipeline
from uso_jax.inference.records import Result
from uso_jax.inference.request import Request
from uso_jax.service.limits import Limits
from uso_jax.service.metrics import Metrics
from uso_jax.service.work import Busy, Job, Late, Worker


class NotingPipeline(USOPipeline):
    """Draws grey images; "fail" as a prompt fails. `gate` holds it back."""

    def __init__(self):
        self.batches, self.adapters_now, self.gate = [], [], threading.Event()
        self.gate.set()
        self.sampler, self.stuck = types.SimpleNamespace(steps={}), []

    def generate(self, requests, *, batch_size=None, progress=None):
        assert self.gate.wait(30)
        progress("Sampling", 0, 2)
        self.batches.append([request.prompt for request in requests])
        if any(request.prompt == "fail" for request in requests):
            raise RuntimeError("no memory")
        progress("Sampling", 2, 2)
        records = [{"request": {"prompt": request.prompt}, "adapters": [*self.adapters_now]} for request in requests]
        return Result([Image.new("RGB", (8, 8)) for _ in requests], records)

    def load_adapter(self, path, *, strength=1.0, name=None):
        if path == "damaged":
            raise InputError("it is damaged")
        self.adapters_now.append((name, strength))
        return name

    def unload(self, name):
        if name in self.stuck:
            self.stuck.remove(name)
            raise OSError("the disk is away")
        self.adapters_now = [one for one in self.adapters_now if one[0] != name]


@pytest.fixture
def pipe():
    return NotingPipeline()


@pytest.fixture
def worker(pipe):
    made = Worker(pipe, Limits(batch=4, wait=0.0, queue=12), Metrics(), lambda name: name)
    yield made
    pipe.gate.set()
    made.close()


def request(prompt: str, side: int = 32, **options) -> Request:
    return Request(
        prompt, (), (), (), GenerationOptions(width=side, height=side, num_steps=2, style_strength=(), **options)
    )


def job(*prompts: str, side: int = 32, adapters=(), seconds: float = 30.0, **options) -> Job:
    return Job([request(prompt, side, **options) for prompt in prompts], adapters, time.monotonic() + seconds)


def hold(worker, pipe) -> Job:
    """Return a job that holds the drawing thread back until the gate opens."""
    pipe.gate.clear()
    first = job("first", side=16)
    worker.add(first)
    while first.begun is None:
        time.sleep(0.001)
    return first


def held(worker, pipe, *jobs):
    """Add jobs while the drawing thread is held back, so that all of them wait together."""
    first = hold(worker, pipe)
    for one in jobs:
        worker.add(one)
    pipe.gate.set()
    first.images.result(10)


def prompts(made) -> list[str]:
    return [one.record["request"]["prompt"] for one in made]


def test_images_that_fit_share_batches_and_each_job_gets_its_own_in_order(worker, pipe):
    jobs = job("a", "b"), job("c", side=64), job("d"), job("e", "f", "g")
    held(worker, pipe, *jobs)
    results = [prompts(one.images.result(10)) for one in jobs]
    assert results == [["a", "b"], ["c"], ["d"], ["e", "f", "g"]]
    assert pipe.batches[1:] == [["a", "b", "d", "e"], ["c"], ["f", "g"]]


def test_batches_are_filled_up_to_few_sizes(worker, pipe):
    one = job("a", "b", "c")
    held(worker, pipe, one)
    assert prompts(one.images.result(10)) == ["a", "b", "c"]
    assert pipe.batches[1] == ["a", "b", "c", "c"]


def test_an_image_waits_a_while_for_others(pipe):
    worker = Worker(pipe, Limits(batch=2, wait=0.5), Metrics(), lambda name: name)
    early, late = job("a"), job("b")
    worker.add(early)
    time.sleep(0.05)
    worker.add(late)
    assert prompts(early.images.result(10)) == ["a"] and pipe.batches == [["a", "b"]]
    worker.close()


def test_a_failed_batch_fails_no_other_job(worker, pipe):
    good, bad = job("a"), job("fail")
    held(worker, pipe, good, bad)
    assert prompts(good.images.result(10)) == ["a"]
    with pytest.raises(RuntimeError, match="no memory"):
        bad.images.result(10)
    after = job("b")
    worker.add(after)
    assert prompts(after.images.result(10)) == ["b"]


def test_cancelled_and_late_jobs_are_not_drawn(worker, pipe):
    gone, late, kept = job("gone"), job("late", seconds=-1), job("kept")
    gone.cancel()
    held(worker, pipe, gone, late, kept)
    assert prompts(kept.images.result(10)) == ["kept"]
    for one in (gone, late):
        with pytest.raises(Late):
            one.images.result(10)
    assert pipe.batches[1:] == [["kept"]]


def test_a_running_batch_stops_when_nobody_waits(worker, pipe):
    one = job("a")
    said = []
    one.report = lambda *news: (said.append(news), one.cancel())
    worker.add(one)
    with pytest.raises(Late):
        one.images.result(10)
    after = job("b")
    worker.add(after)
    after.images.result(10)
    assert pipe.batches == [["a"], ["b"]] and said == [("Sampling", 0, 2)]


def test_the_queue_is_bounded(worker, pipe):
    jobs = [job(*"abcdef"), job(*"ghijkl")]
    held_back = job("m")
    hold(worker, pipe)
    for one in jobs:
        worker.add(one)
    with pytest.raises(Busy, match="12 images are waiting"):
        worker.add(held_back)
    pipe.gate.set()
    assert len(jobs[1].images.result(10)) == 6
    worker.add(held_back)
    held_back.images.result(10)


def test_adapters_change_between_batches(worker, pipe):
    ink, both, none = job("a", adapters=(("ink", 0.5),)), job("b", adapters=(("ink", 0.5), ("felt", 1.0))), job("c")
    bad = job("d", adapters=(("damaged", 1.0),))
    held(worker, pipe, ink, both, none, bad)
    found = [one.images.result(10)[0].record["adapters"] for one in (ink, both, none)]
    assert found == [[("ink", 0.5)], [("ink", 0.5), ("felt", 1.0)], []]
    with pytest.raises(InputError, match="adapter 'damaged' cannot be used: it is damaged"):
        bad.images.result(10)


def test_an_adapter_that_stays_is_unloaded_later(worker, pipe):
    both = (("ink", 1.0), ("felt", 1.0))
    worker.add(first := job("a", adapters=both))
    first.images.result(10)
    pipe.stuck = ["ink"]
    worker.add(failed := job("b"))
    with pytest.raises(OSError, match="disk is away"):
        failed.images.result(10)
    for adapters in ((), both):
        worker.add(after := job("c", adapters=adapters))
        assert after.images.result(10)[0].record["adapters"] == list(adapters)


def test_places_of_cancelled_jobs_are_free_at_once(worker, pipe):
    hold(worker, pipe)
    full = [job(*"abcdef"), job(*"ghijkl")]
    for one in full:
        worker.add(one)
    full[0].cancel()
    worker.add(after := job(*"mnopqr"))
    pipe.gate.set()
    assert len(after.images.result(10)) == 6


def test_enlarged_images_have_batches_for_themselves(worker, pipe):
    jobs = job("a"), job("b", upscale=2.0), job("c"), job("d", upscale=2.0), job("e", upscale=2.0)
    held(worker, pipe, *jobs)
    for one in jobs:
        one.images.result(10)
    assert pipe.batches[1:] == [["a", "c"], ["b", "d", "e", "e"]]


def test_the_end_draws_what_waits(pipe):
    worker = Worker(pipe, Limits(batch=2, wait=20.0, seconds=60.0), Metrics(), lambda name: name)
    jobs = [job("a"), job("b"), job("c")]
    for one in jobs:
        worker.add(one)
    worker.close()
    assert all(one.images.done() for one in jobs) and not worker.is_open
    with pytest.raises(Busy, match="is stopping"):
        worker.add(job("d"))


def test_figures(worker, pipe):
    done = job("a", "b")
    worker.add(done)
    done.images.result(10)
    worker.add(failed := job("fail"))
    with pytest.raises(RuntimeError):
        failed.images.result(10)
    text = worker.metrics.text().decode()
    for line in ("uso_images_total 2.0", 'uso_failures_total{error="RuntimeError"} 1.0', "uso_queue_seconds_count 2.0"):
        assert line in text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(batch=0), "--batch must be positive"),
        (dict(wait=-1.0), "--wait must be from 0"),
        (dict(wait=700.0), "--wait"),
    ],
)
def test_limits_are_checked(values, message):
    with pytest.raises(InputError, match=message):
        Limits(**values)
