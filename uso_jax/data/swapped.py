# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Triplets the other way round: from the stylised target back to the content, what a de-stylising expert learns."""

from typing import SupportsIndex

import numpy as np
from jaxtyping import Int32

from uso_jax.common.errors import InputError
from uso_jax.data.triplet import Triplet, TripletSource
from uso_jax.images.decode import Fit


class Swapped:
    """The triplets of a source with content and target exchanged and without style images.

    The prompt stays: it says what the image shows, in either look. Of the labels only the subject's stays true.
    """

    def __init__(self, source: TripletSource):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: SupportsIndex) -> Triplet:
        return _swap(self.source[index])

    def fitted(
        self, index: int, target: Fit | None = None, content: Fit | None = None, style: Fit | None = None
    ) -> Triplet:
        """Give a triplet whose images are resized as they are decoded, where the source can do that."""
        if not hasattr(self.source, "fitted"):
            return self[index]
        return _swap(self.source.fitted(index, content, target, style))

    def sizes(self) -> Int32[np.ndarray, "n 4"]:
        """Give (height, width) of every target and content image."""
        from uso_jax.data.buckets import sizes_of  # which imports this module

        return sizes_of(self.source)[:, [2, 3, 0, 1]]


def _swap(triplet: Triplet) -> Triplet:
    if triplet.content is None or triplet.target is None:
        lacks = "content" if triplet.content is None else "target"
        raise InputError(
            f"triplet {triplet.key!r} has no {lacks} image, so it cannot be swapped: set the"
            " stage's data.tasks to subject or style_subject, or take another source."
        )
    labels = {"subject": triplet.meta.get("labels", {}).get("subject", -1)}
    return Triplet(
        prompt=triplet.prompt,
        content=triplet.target,
        styles=(),
        target=triplet.content,
        task="subject",
        layout=triplet.layout,
        key=f"{triplet.key}/swapped",
        meta=triplet.meta | {"labels": labels},
    )
