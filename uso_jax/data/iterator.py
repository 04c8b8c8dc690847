# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Iterate over a Grain dataset of batches with threads or worker processes, resumable at any batch."""

import logging
import re
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from uso_jax.common import compat
from uso_jax.common.errors import BadExample, InputError
from uso_jax.data.examples import ROW, SKIPPED
from uso_jax.data.triplet import TripletSource


class Stream:
    """An iterable over the batches of a dataset.

    Args:
      dataset: yields batches.
      sources: of the mixture, to report unreadable examples.
      num_threads: reader threads per process.
      num_workers: reader processes; 0 reads in this process.
      max_errors: unreadable examples that are skipped before an InputError is raised.
    """

    def __init__(
        self,
        dataset: grain.MapDataset,
        sources: Sequence[TripletSource],
        num_threads: int,
        num_workers: int,
        max_errors: int,
    ):
        self.dataset, self.sources, self.max_errors = dataset, sources, max_errors
        self.num_workers = num_workers
        self.options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)

    def __iter__(self) -> "StreamIterator":
        return StreamIterator(self)


class StreamIterator:
    """Yields batches. The position counts batches, so a state is valid for any number of threads and workers."""

    def __init__(self, stream: Stream):
        self.stream, self.position = stream, 0
        self.skipped: set[tuple[int, int]] = set()  # (source, index) of unreadable examples
        self.rows: np.ndarray | None = None  # (source, index) of the last batch's examples, int64 [b, 2], if asked for
        self._batches = None

    def __iter__(self) -> "StreamIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._batches is None:
            self._batches = self._start()
        try:
            batch = next(self._batches)
        except RuntimeError as error:
            if not (ended := re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))):
                raise
            self.close()
            raise InputError(_why_ended(int(ended[1]))) from error
        self.position += 1
        self.rows = batch.pop(ROW, None)
        if self.stream.max_errors:
            found = batch.pop(SKIPPED).reshape(-1, 2).tolist()
            self._count((number, index) for number, index in found if index >= 0)
        return batch

    def get_state(self) -> dict[str, Any]:
        """Return the position as a JSON-serialisable dict."""
        skipped = {"skipped": sorted(map(list, self.skipped))} if self.skipped else {}
        return {"next_index": self.position} | skipped

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue with the batch after a position from `get_state`."""
        self.close()
        self.position = state["next_index"]
        self.skipped = {tuple(pair) for pair in state.get("skipped", [])}

    def close(self) -> None:
        """Stop the reader threads or processes."""
        if self._batches is not None:
            self._batches.close()
        self._batches = None

    def _start(self):
        dataset = self.stream.dataset
        rest = dataset[self.position :] if self.position else dataset
        reading = rest.to_iter_dataset(self.stream.options)
        if self.stream.num_workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain reads absl flags even in programs that parse none
            compat.start_resource_tracker()
            options = grain.MultiprocessingOptions(num_workers=self.stream.num_workers, per_worker_buffer_size=2)
            reading = reading.mp_prefetch(options, worker_init_fn=_in_worker)
        return iter(reading)

    def _count(self, found) -> None:
        for number, index in found:
            if (number, index) in self.skipped:
                continue
            self.skipped.add((number, index))
            reason = _reason(self.stream.sources[number], index)
            if len(self.skipped) > self.stream.max_errors:
                raise InputError(
                    f"{len(self.skipped)} examples cannot be read, and data.max_errors is {self.stream.max_errors};"
                    f" last error: {reason}"
                )
            logging.getLogger("uso_jax.data").warning(
                "skipped unreadable example (%d of at most %d): %s", len(self.skipped), self.stream.max_errors, reason
            )


def _reason(source: TripletSource, index: int) -> str:
    """Return the error of an example by reading it again: workers pass on only its index."""
    try:
        source[index]
    except BadExample as error:
        return str(error)
    return f"example {index}, which is readable again."


def _why_ended(code: int) -> str:
    """Return what a worker's exit code says, and what to do."""
    if code == -signal.SIGBUS:
        cause = "/dev/shm, through which it passes batches, is full: enlarge it (docker run --shm-size=8g)"
    elif code == -signal.SIGKILL:
        cause = "it was killed, probably because the machine ran out of memory: use a machine with more memory"
    else:
        cause = "see its output above"
    return (
        f"a process that reads data ended with exit code {code}; {cause}, or lower --config.data.num_workers (0 reads"
        " without processes). The same command continues from the last checkpoint"
    )


def _in_worker(index: int, count: int) -> None:
    """Restrict a worker process to the CPU: the training process owns the accelerator."""
    del index, count
    jax.config.update("jax_platforms", "cpu")
