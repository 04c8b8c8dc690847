# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From a random-access source of triplets to batches of stacked arrays, with Grain.

The iterator's `get_state()` is a JSON-able dict; `set_state()` continues at exactly the next batch, so a checkpoint
that holds it resumes the data order. Shapes: b batch of this process, n style slots, h w target, hc wc content, hs ws
style; sizes are (height, width).
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from uso_jax.data import images
from uso_jax.data.record import Triplet
from uso_jax.errors import InputError

Size = tuple[int, int]
Tokenize = Callable[[str], dict[str, np.ndarray]]


@runtime_checkable
class Source(Protocol):
    """Random access to triplets."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Triplet: ...


def open_source(spec: Mapping[str, Any], wishes: Mapping[str, Any] | None = None) -> Source:
    """Open the source that spec["name"] names, with the other entries of the mapping as its arguments.

    `wishes` are further arguments, such as a training stage's tasks, for a source that knows them; others ignore them.
    """
    # Imported here: each reader brings its own dependencies, and only the chosen one should be needed.
    name, arguments = spec.get("name"), {key: value for key, value in spec.items() if key != "name"}
    if name == "procedural":
        from uso_jax.data.procedural import ProceduralSource as source
    elif name == "emoji":
        from uso_jax.data.emoji import EmojiSource as source
    elif name == "json":
        from uso_jax.data.json_triplets import JsonSource as source
    else:
        raise InputError(f"unknown data source {name!r}; use one of procedural, emoji, json.")
    signature = inspect.signature(source)
    arguments |= {key: value for key, value in (wishes or {}).items() if key in signature.parameters}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise InputError(f"data source {name!r}: {error}; see {source.__name__} for its arguments.") from None
    return source(**arguments)


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    target_size: Size,
    content_size: Size,
    style_size: Size,
    num_styles: int,
    tokenize: Tokenize,
    shuffle: bool = True,
    repeat: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
) -> grain.IterDataset:
    """Build the endless (or, with repeat=False, one-epoch) stream of this process's batches.

    Each batch has "target" uint8 [b, h, w, 3], "content" uint8 [b, hc, wc, 3] and "content_valid" bool [b], "style"
    uint8 [b, n, hs, ws, 3] and "style_valid" bool [b, n], "subject_label" and "style_label" int32 [b], -1 where the
    source does not know them, and what `tokenize` returns, stacked. Absent conditions are
    zero images that are not valid; style images past `num_styles` are an InputError. `batch_size` counts all
    processes. An incomplete last batch is dropped.
    """
    if batch_size < 1 or process_count < 1 or batch_size % process_count:
        raise InputError(
            f"batch_size {batch_size} must be a positive multiple of the number of processes, {process_count}."
        )
    if not 0 <= process_index < process_count:
        raise InputError(f"process_index {process_index} must lie from 0 to process_count - 1 = {process_count - 1}.")
    if len(source) == 0:
        raise InputError("the data source is empty; check its path, its split and its filters.")
    if not repeat and len(source) < batch_size:
        raise InputError(f"batch_size {batch_size} is larger than the {len(source)} examples; lower it or set repeat.")

    examples = _Examples(source, target_size, content_size, style_size, num_styles, tokenize)
    dataset = grain.MapDataset.source(examples).seed(seed)
    if shuffle:
        dataset = dataset.shuffle()
    # Without repeat, every process must see the same number of batches, or a collective step would wait for ever.
    dataset = dataset.repeat() if repeat else dataset[: len(source) // batch_size * batch_size]
    # Interleaved, after the shuffle: at every step the processes together hold the next batch_size examples of the
    # one global order, so the stream does not depend on how many processes share it.
    dataset = dataset[process_index::process_count]
    dataset = dataset.batch(batch_size // process_count, drop_remainder=True)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return dataset.to_iter_dataset(options)


class _Examples:
    """The source, seen as examples of fixed shapes.

    Reading and preparing happen in one step of Grain, so an InputError of either reaches the caller as it was raised.
    """

    def __init__(
        self,
        source: Source,
        target_size: Size,
        content_size: Size,
        style_size: Size,
        num_styles: int,
        tokenize: Tokenize,
    ):
        self.source, self.tokenize = source, tokenize
        self.target_size, self.content_size = tuple(target_size), tuple(content_size)
        self.style_size, self.num_styles = tuple(style_size), num_styles

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return f"_Examples({type(self.source).__name__}, {len(self)})"

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        triplet = self.source[index]
        if len(triplet.styles) > self.num_styles:
            raise InputError(
                f"example {triplet.key!r} has {len(triplet.styles)} style images, but num_styles is {self.num_styles}:"
                " raise it or remove some."
            )
        example = {
            "target": images.cover(triplet.target, self.target_size),
            "content": np.zeros((*self.content_size, 3), np.uint8),
            "content_valid": np.asarray(triplet.content is not None),
            "style": np.zeros((self.num_styles, *self.style_size, 3), np.uint8),
            "style_valid": np.arange(self.num_styles) < len(triplet.styles),
        }
        if triplet.content is not None:
            example["content"] = images.cover(triplet.content, self.content_size)
        for slot, style in enumerate(triplet.styles):
            example["style"][slot] = images.squash(style, self.style_size)
        labels = triplet.meta.get("labels", {})
        example |= {f"{name}_label": np.int32(labels.get(name, -1)) for name in ("subject", "style")}
        tokens = self.tokenize(triplet.prompt)
        if taken := sorted(set(tokens) & set(example)):
            raise InputError(f"tokenize returns {', '.join(taken)}, which the batch itself holds: rename it.")
        return example | tokens
