# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Triplets with content and target exchanged, to train a de-stylising expert."""

from typing import SupportsIndex

import numpy as np
from jaxtyping import Int32

from uso_jax.common.errors import InputError
from uso_jax.data.buckets import sizes_of
from uso_jax.data.triplet import Triplet, TripletSource
from uso_jax.images.decode import Fit


class Swapped:
    """The triplets of a source with content and target exchanged and without style images.

    The prompt is kept, since it describes both images. Only the subject label stays valid.
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
        """Return a triplet whose images are resized while they are decoded, if the source supports it."""
        if not hasattr(self.source, "fitted"):
            return self[index]
        return _swap(self.source.fitted(index, content, target, style))

    def sizes(self) -> Int32[np.ndarray, "n 4"]:
        """Return (height, width) of every target and content image."""
        return sizes_of(self.source)[:, [2, 3, 0, 1]]


def _swap(triplet: Triplet) -> Triplet:
    if triplet.content is None or triplet.target is None:
        lacks = "content" if triplet.content is None else "target"
        raise InputError(
            f"triplet {triplet.key!r} has no {lacks} image, so it cannot be swapped: set the"
            " stage's data.tasks to subject or style_subject, or use another source."
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
