# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the service counts, in Prometheus' format."""

import functools
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counters of one service."""

    def __init__(self):
        registry = self._registry = CollectorRegistry()
        counter, histogram = (functools.partial(kind, registry=registry) for kind in (Counter, Histogram))
        self._requests = counter("uso_requests", "Requests.", ("route", "status"))
        self._images = counter("uso_images", "Images that were drawn.")
        self._failures = counter("uso_failures", "Batches that failed.", ("error",))
        self._batch = histogram("uso_batch_images", "Images of a batch.", buckets=(1, 2, 4, 8, 16, 32, 64))
        self._drawing = histogram("uso_batch_seconds", "Time of a batch.", buckets=_SECONDS)
        self._queue = histogram("uso_queue_seconds", "Time of an image in the queue.", buckets=_SECONDS)

    def watch(self, waiting: Callable[[], int]) -> None:
        """Show the number of images that wait."""
        gauge = Gauge("uso_waiting_images", "Images in the queue.", registry=self._registry)
        gauge.set_function(waiting)

    def answered(self, route: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()

    def drawn(self, images: int, seconds: float, queued: Sequence[float]) -> None:
        """Count a batch."""
        self._images.inc(images)
        self._batch.observe(images)
        self._drawing.observe(seconds)
        for one in queued:
            self._queue.observe(one)

    def failed(self, error: Exception) -> None:
        """Count a batch that failed."""
        self._failures.labels(type(error).__name__).inc()

    def text(self) -> bytes:
        """Return all figures."""
        return generate_latest(self._registry)
