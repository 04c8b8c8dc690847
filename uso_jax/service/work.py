# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The queue: jobs of one or more images, and one thread that draws waiting images in batches.

Images leave in the order in which they came, except that a batch takes waiting images that fit its first one: the same
size, kind and adapters. Batches are filled up to 1, 2, 4, 8 ... images, so that few programs are compiled.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
from PIL import Image

from uso_jax.common.errors import InputError
from uso_jax.inference.batch import group_requests
from uso_jax.inference.pipeline import USOPipeline
from uso_jax.inference.request import Request
from uso_jax.service.limits import Limits
from uso_jax.service.metrics import Metrics

_PROGRAMS = 64  # compiled steps that are kept in memory; all are kept on disk
Adapters = tuple[tuple[str, float], ...]
"""Names and strengths of adapters."""


# The client's thread cancels and the drawing one finishes: what comes first counts.
_FIRST = contextlib.suppress(InvalidStateError)


class Busy(Exception):
    """The queue is full, or the service is stopping; the message is for the client."""


class Late(Exception):
    """The time of a job is over, or nobody waits for it any more."""


class Made(NamedTuple):
    """An image and the record that repeats it."""

    image: Image.Image
    record: dict[str, Any]


@dataclass(eq=False)
class Job:
    """Images that one client waits for.

    Attributes:
      requests: of the images.
      adapters: that they are drawn with.
      deadline: on the clock of `time.monotonic`.
      report: called with (phase, steps done, total steps) by the drawing thread.
      images: the result.
      begun: when its first image was drawn; None: it waits.
    """

    requests: Sequence[Request]
    adapters: Adapters
    deadline: float
    report: Callable[[str, int, int], Any] = lambda phase, step, total: None
    images: Future[list[Made]] = field(default_factory=Future)
    begun: float | None = None
    came: float = field(default_factory=time.monotonic)
    _made: dict[int, Made] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be drawn for it."""
        return self.images.done() or time.monotonic() > self.deadline

    def cancel(self) -> None:
        """Leave out what is not drawn yet."""
        self.fail(Late("cancelled"))

    def finish(self, number: int, made: Made) -> None:
        """Add an image; the last one completes the job."""
        self._made[number] = made
        if len(self._made) == len(self.requests):
            with _FIRST:
                self.images.set_result([self._made[i] for i in range(len(self.requests))])

    def fail(self, error: Exception) -> None:
        """End the job without images."""
        with _FIRST:
            self.images.set_exception(error)


class _Unit(NamedTuple):
    job: Job
    number: int

    @property
    def request(self) -> Request:
        return self.job.requests[self.number]


class Worker:
    """The queue and its thread.

    Args:
      pipe: draws the images; nothing else uses it while the worker runs.
      limits: of batches and of the queue.
      metrics: counts what is drawn.
      find: path of an adapter by its name; raises InputError.
    """

    def __init__(self, pipe: USOPipeline, limits: Limits, metrics: Metrics, find: Callable[[str], str]):
        self.pipe, self.limits, self.metrics = pipe, limits, metrics
        self._find, self._adapters = find, ()
        self._waiting: list[_Unit] = []
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="drawing", daemon=True)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        """Whether jobs are taken."""
        return not self._is_closed and self._thread.is_alive()

    @property
    def num_waiting(self) -> int:
        """Images that wait."""
        return len(self._waiting)

    def add(self, job: Job) -> None:
        """Put a job at the end of the queue.

        Raises:
          Busy: there is no place, or the service is stopping.
        """
        with self._changed:
            self.check_room(len(job.requests))
            self._waiting += [_Unit(job, number) for number in range(len(job.requests))]
            self._changed.notify()

    def check_room(self, count: int) -> None:
        """Raise Busy if there is no place for this number of images, or the service is stopping."""
        with self._changed:
            if not self.is_open:
                raise Busy("the service is stopping; try another one, or later")
            self._drop_over()
            if len(self._waiting) + count > self.limits.queue:
                raise Busy(f"{len(self._waiting)} images are waiting; try again later")

    def close(self) -> None:
        """Take no more jobs, draw those that wait, and return when all are done."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            self._draw(batch)
            if len(self.pipe.sampler.steps) > _PROGRAMS:  # every new size and shape of a reference has one
                self.pipe.sampler.steps.clear()
                jax.clear_caches()

    def _next(self) -> list[_Unit]:
        """Wait for images and take a batch; an empty one means the end."""
        with self._changed:
            while True:
                self._drop_over()
                if self._waiting:
                    batch = self._fitting()
                    rest = self._waiting[0].job.came + self.limits.wait - time.monotonic()
                    if len(batch) >= self.limits.batch or rest <= 0 or self._is_closed:
                        self._waiting = [unit for unit in self._waiting if unit not in batch]
                        return batch
                    self._changed.wait(rest)
                elif self._is_closed:
                    return []
                else:
                    self._changed.wait()

    def _drop_over(self) -> None:
        over = {id(unit.job) for unit in self._waiting if unit.job.is_over}
        for unit in self._waiting:
            if id(unit.job) in over:
                unit.job.fail(Late("the request waited too long"))
        self._waiting = [unit for unit in self._waiting if id(unit.job) not in over]

    def _fitting(self) -> list[_Unit]:
        """Return the first waiting image with those that fit it, in order."""
        kind = lambda unit: (unit.job.adapters, unit.request.options.upscale > 1)  # enlarging takes many times as long
        alike = [unit for unit in self._waiting if kind(unit) == kind(self._waiting[0])]
        group = group_requests([unit.request for unit in alike], self.limits.batch)[0]
        return [alike[number] for number in group]

    def _draw(self, batch: list[_Unit]) -> None:
        """Draw a batch; if it fails, each job's images alone, so that no job fails by another one."""
        started = time.monotonic()
        for unit in batch:
            unit.job.begun = unit.job.begun or started
        try:
            made = self._generate(batch)
        except Exception as error:
            jobs = list(dict.fromkeys(unit.job for unit in batch))
            if len(jobs) == 1:
                if not isinstance(error, Late):
                    self.metrics.failed(error)
                jobs[0].fail(error)
            else:
                for job in jobs:
                    self._draw([unit for unit in batch if unit.job is job])
            return
        self.metrics.drawn(len(batch), time.monotonic() - started, [started - unit.job.came for unit in batch])
        for unit, one in zip(batch, made, strict=True):
            unit.job.finish(unit.number, one)

    def _generate(self, batch: list[_Unit]) -> list[Made]:
        jobs = list(dict.fromkeys(unit.job for unit in batch))

        def report(phase: str, step: int, total: int) -> None:
            if all(job.is_over for job in jobs):
                raise Late("the request took too long")
            for job in jobs:
                job.report(phase, step, total)

        self._use(batch[0].job.adapters)
        requests = [unit.request for unit in batch]
        size = min(1 << (len(requests) - 1).bit_length(), max(self.limits.batch, len(requests)))
        plain = dataclasses.replace(requests[-1].options, upscale=1.0)
        filled = [*requests, *[dataclasses.replace(requests[-1], options=plain)] * (size - len(requests))]
        result = self.pipe.generate(filled, progress=report)
        return [Made(*one) for one in zip(result.images, result.records, strict=True)][: len(batch)]

    def _use(self, adapters: Adapters) -> None:
        """Load these adapters in place of those of the batch before."""
        if adapters == self._adapters:
            return
        while self._adapters:  # one that cannot be unloaded stays on the list, and is tried again
            self.pipe.unload(self._adapters[-1][0])
            self._adapters = self._adapters[:-1]
        for name, strength in adapters:
            try:
                self.pipe.load_adapter(self._find(name), strength=strength, name=name)
            except InputError as error:
                raise InputError(f"adapter {name!r} cannot be used: {error}") from error
            self._adapters += ((name, strength),)
