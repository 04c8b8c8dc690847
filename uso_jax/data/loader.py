# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Build batches of stacked arrays from random-access sources of triplets, with Grain.

The iterator's `get_state()` returns a JSON-serialisable dict and `set_state()` continues with exactly the next batch,
so a checkpoint that stores it resumes the data order with any number of threads, worker processes and hosts.

Shapes: b batch of this process, n style slots, h w target, hc wc content, hs ws style. Sizes are (height, width).
"""

from collections.abc import Sequence

import grain

from uso_jax.common.errors import InputError
from uso_jax.data import buckets
from uso_jax.data.buckets import Shape, Size, share_out
from uso_jax.data.examples import Examples
from uso_jax.data.iterator import Stream
from uso_jax.data.sources import Mixture
from uso_jax.data.triplet import Tokenize, TripletSource


def batches(
    source: TripletSource | Mixture,
    *,
    batch_size: int,
    seed: int,
    target_size: Size,
    content_size: Size,
    style_size: Size,
    crop_styles: bool = False,
    num_styles: int,
    tokenize: Tokenize,
    target_sizes: Sequence[Size] = (),
    content_sizes: Sequence[Size] = (),
    smaller_sizes: Sequence[Sequence[Size]] = (),
    shuffle: bool = True,
    repeat: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
    num_workers: int = 0,
    max_errors: int = 0,
    mask_cell: int = 0,
    rows: bool = False,
) -> "Stream":
    """Build the stream of this process's batches: infinite, or one epoch with repeat=False.

    Args:
      source: triplets, precomputed features, or a mixture of either.
      batch_size: global batch size, over all processes. An incomplete last batch is dropped.
      seed: determines the order of examples.
      target_size, content_size, style_size: (height, width) that images are resized to.
      crop_styles: crop style images to their size instead of changing their shape.
      num_styles: style slots per example.
      tokenize: maps a prompt to arrays, which are added to the batch.
      target_sizes, content_sizes: several sizes (buckets) instead of one. A batch has one of them, the same on all
        processes.
      smaller_sizes: target sizes of further areas, the largest area first; see `buckets.assign`.
      process_index, process_count: this process's share of every batch.
      num_threads: reader threads per process.
      num_workers: reader processes; 0 reads with threads of this process.
      max_errors: unreadable examples of this process that are replaced by the next ones before an error is raised.
      mask_cell: pixels a side of a token, to read masks; 0: they are not read.
      rows: let the iterator tell, in `rows`, where the examples of the last batch come from.

    Returns:
      Batches with "target" uint8 [b, h, w, 3], "content" uint8 [b, hc, wc, 3], "content_valid" bool [b], "style" uint8
      [b, n, hs, ws, 3], "style_valid" bool [b, n], "subject_label" and "style_label" int32 [b] (-1 if unknown), and the
      stacked outputs of `tokenize`. Absent conditions are zero images marked invalid. With `mask_cell`, "mask" float32
      [b, rows, columns] from 0 to 1, 1 without a mask; of a mixture with loss weights, "loss_weight" float32 [b].

    Raises:
      InputError: arguments or sources are inconsistent. Iterating raises it for examples with more than `num_styles`
        style images and for too many unreadable examples.
    """
    if batch_size < 1 or process_count < 1 or batch_size % process_count:
        raise InputError(
            f"batch_size {batch_size} must be a positive multiple of the number of processes, {process_count}."
        )
    if not 0 <= process_index < process_count:
        raise InputError(f"process_index {process_index} must be in [0, process_count - 1 = {process_count - 1}].")
    mixture = source if isinstance(source, Mixture) else Mixture((source,), (1.0,))
    parts = list(zip(mixture.sources, mixture.weights, strict=True))
    if any(len(part) == 0 for part, _ in parts):
        raise InputError("the data source is empty; check its path, split and filters.")
    if len({hasattr(part, "example") for part, _ in parts}) > 1:
        raise InputError("a mixture is of images or of features, not of both: precompute all sources or none.")
    smallest = min(len(part) for part, _ in parts)
    if not repeat and smallest < batch_size:
        raise InputError(f"batch_size {batch_size} exceeds the {smallest} examples; reduce it or set repeat=True.")

    targets, contents = (target_sizes or (target_size,)), (content_sizes or (content_size,))
    streams: dict[Shape, list[tuple[grain.MapDataset, float]]] = {}
    for number, (part, weight) in enumerate(parts):
        shared = share_out(part, targets, contents, batch_size, smaller_sizes)
        for shape, count in buckets.count_triplets(shared, len(part)).items():
            examples = Examples(
                part,
                number,
                shared[shape],
                shape,
                tuple(style_size),
                num_styles,
                tokenize,
                may_skip=max_errors > 0,
                crop_styles=crop_styles,
                mask_cell=mask_cell,
                loss_weight=mixture.loss_weights[number] if mixture.loss_weights else None,
                rows=rows,
            )
            dataset = grain.MapDataset.source(examples).seed(seed + number)
            if shuffle:
                dataset = dataset.shuffle()
            # Without repeat, every process must see the same number of batches, or a collective step would hang.
            dataset = dataset.repeat() if repeat else dataset[: count // batch_size * batch_size]
            streams.setdefault(shape, []).append((dataset, weight * count / len(part)))

    batched, shares = [], []
    for shape in sorted(streams):
        mixed, share = _mix(*zip(*streams[shape], strict=True)), sum(share for _, share in streams[shape])
        mixed = _Rows(mixed, batch_size, process_index, process_count)
        if len(mixed):
            batched.append(mixed.batch(batch_size // process_count, drop_remainder=True))
            shares.append(share)
    if not batched:
        raise InputError(f"no bucket holds a batch of {batch_size} examples; reduce batch_size or set repeat=True.")
    dataset = _mix(batched, shares) if repeat or len(batched) == 1 else grain.MapDataset.concatenate(batched)
    return Stream(dataset, mixture.sources, num_threads, num_workers, max_errors)


class _Rows(grain.MapDataset):
    """One process's rows of every batch of a dataset.

    Rows are taken after the shuffle, in contiguous blocks: at every step the processes together hold the next
    batch_size examples of the global order. The global batches therefore do not depend on the number of processes.
    """

    _MUTATES_ELEMENT_SPEC = False

    def __init__(self, parent: grain.MapDataset, batch_size: int, process_index: int, process_count: int):
        super().__init__(parent)
        self._examples = parent
        self._batch_size, self._rows = batch_size, batch_size // process_count
        self._first, self._length = process_index * self._rows, len(parent) // batch_size * self._rows

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._rows)
        return self._examples[batch * self._batch_size + self._first + row]

    def __str__(self) -> str:
        return f"_Rows({self._first}, {self._rows} of {self._batch_size})"


def _mix(datasets: Sequence[grain.MapDataset], shares: Sequence[float]) -> grain.MapDataset:
    return datasets[0] if len(datasets) == 1 else grain.MapDataset.mix(datasets, shares)
