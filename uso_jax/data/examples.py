# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Triplets as dicts of fixed-shape arrays, ready to be stacked into batches."""

import numpy as np
from jaxtyping import Float32, UInt8

from uso_jax.common.errors import BadExample, InputError
from uso_jax.data.buckets import Shape, Size
from uso_jax.data.triplet import Tokenize, TripletSource
from uso_jax.images import decode

SKIPPED = "_skipped"  # internal batch entry: (source, index) of examples that could not be read, padded with -1
ROW = "_row"  # internal batch entry: (source, index) of every example
_TRIES = 8  # consecutive unreadable examples before giving up


class Examples:
    """The examples of a source that belong to one bucket.

    Reading and preprocessing are one Grain step, so an InputError reaches the caller unchanged.

    Args:
      source: where triplets or precomputed features come from.
      number: index of the source within its mixture, reported for skipped examples.
      indices: indices of this bucket's examples in the source; None means all.
      shape: (height, width) of target and content.
      style_size: (height, width) of style images.
      num_styles: style slots; unused ones are zero and not valid.
      tokenize: maps a prompt to arrays.
      may_skip: replace an unreadable example by the next one and record it under SKIPPED.
      crop_styles: crop style images to their size instead of changing their shape.
      mask_cell: pixels a side of a token; examples have a "mask" with a number for each. 0: masks are not read.
      loss_weight: of these examples, which they then hold; None: they hold none.
      rows: record where each example comes from, under ROW.
    """

    def __init__(
        self,
        source: TripletSource,
        number: int,
        indices: np.ndarray | None,
        shape: Shape,
        style_size: Size,
        num_styles: int,
        tokenize: Tokenize,
        may_skip: bool = False,
        crop_styles: bool = False,
        mask_cell: int = 0,
        loss_weight: float | None = None,
        rows: bool = False,
    ):
        self.source, self.number, self.indices, self.tokenize = source, number, indices, tokenize
        self.target_size, self.content_size = map(tuple, shape)
        self.style_size, self.num_styles, self.may_skip = style_size, num_styles, may_skip
        self.crop_styles, self.mask_cell, self.loss_weight = crop_styles, mask_cell, loss_weight
        self.rows = rows

    def __len__(self) -> int:
        return len(self.source) if self.indices is None else len(self.indices)

    def __repr__(self) -> str:
        return f"Examples({type(self.source).__name__}, {len(self)})"

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        if not self.may_skip:
            return self._weighed(self._index(position))
        skipped = np.full((_TRIES, 2), -1, np.int64)
        for number in range(_TRIES):
            index = self._index((position + number) % len(self))
            try:
                return self._weighed(index) | {SKIPPED: skipped}
            except BadExample as error:
                skipped[number] = self.number, index
                last = error
        raise InputError(f"{_TRIES} examples in a row cannot be read; last error: {last}") from last

    def _index(self, position: int) -> int:
        return position if self.indices is None else int(self.indices[position])

    def _weighed(self, index: int) -> dict[str, np.ndarray]:
        """Return an example with its weights in the loss and its row, where they are asked for."""
        example = self._example(index)
        mask = example.pop("mask", None)
        if self.mask_cell:
            grid = [side // self.mask_cell for side in self.target_size]
            example["mask"] = np.ones(grid, np.float32) if mask is None else mask
        if self.loss_weight is not None:
            example["loss_weight"] = np.float32(self.loss_weight)
        if self.rows:
            example[ROW] = np.array([self.number, index], np.int64)
        return example

    def _example(self, index: int) -> dict[str, np.ndarray]:
        if hasattr(self.source, "example"):
            return self.source.example(index, self.content_size, self.num_styles)
        if hasattr(self.source, "fitted"):
            sizes = self.target_size, self.content_size
            style_fit = (decode.cover_fit if self.crop_styles else decode.squash_fit)(self.style_size)
            triplet = self.source.fitted(index, *map(decode.cover_fit, sizes), style_fit)
        else:
            triplet = self.source[index]
        if triplet.target is None:
            raise InputError(f"example {triplet.key!r} has no target image, so it cannot be used for training.")
        if len(triplet.styles) > self.num_styles:
            raise InputError(
                f"example {triplet.key!r} has {len(triplet.styles)} style images, but num_styles is {self.num_styles}:"
                " increase num_styles or remove style images."
            )
        example = {
            "target": decode.cover(triplet.target, self.target_size),
            "content": np.zeros((*self.content_size, 3), np.uint8),
            "content_valid": np.asarray(triplet.content is not None),
            "style": np.zeros((self.num_styles, *self.style_size, 3), np.uint8),
            "style_valid": np.arange(self.num_styles) < len(triplet.styles),
        }
        if triplet.content is not None:
            example["content"] = decode.cover(triplet.content, self.content_size)
        for slot, style in enumerate(triplet.styles):
            example["style"][slot] = (decode.cover if self.crop_styles else decode.squash)(style, self.style_size)
        if triplet.mask is not None and self.mask_cell:
            example["mask"] = _by_token(decode.cover(triplet.mask, self.target_size), self.mask_cell)
        labels = triplet.meta.get("labels", {})
        example |= {f"{name}_label": np.int32(labels.get(name, -1)) for name in ("subject", "style")}
        tokens = self.tokenize(triplet.prompt)
        if taken := sorted(set(tokens) & set(example)):
            raise InputError(f"tokenize returns {', '.join(taken)}, which are names of batch entries: rename them.")
        return example | tokens


def _by_token(mask: UInt8[np.ndarray, "h w 3"], cell: int) -> Float32[np.ndarray, "rows columns"]:
    """Return the mean brightness, from 0 to 1, of each square of `cell` pixels a side."""
    rows, columns = (side // cell for side in mask.shape[:2])
    return mask.reshape(rows, cell, columns, cell, 3).mean((1, 3, 4), dtype=np.float32) / 255
