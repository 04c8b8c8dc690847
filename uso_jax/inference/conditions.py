# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The inputs of a batch, as arrays of the host.

Shapes: b batch, l target tokens, d token channels, n style images, r content tokens.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from uso_jax import flow
from uso_jax.models.layers.regions import Regions


@dataclass
class Conditions:
    """The inputs of a batch of images of one size. None if the batch has no such condition."""

    height: int
    width: int
    tokens: dict[str, Int[np.ndarray, "b _"]]
    seeds: UInt32[np.ndarray, "b 2"]
    times: Float[np.ndarray, "b steps_plus_1"]
    guidance: Float[np.ndarray, " b"]
    round_down: bool = False
    features: Float[np.ndarray, "b n 3 s c"] | None = None
    style_valid: Bool[np.ndarray, "b n"] | None = None
    style_bias: Float[np.ndarray, "b n"] | None = None
    ref_img: Float[np.ndarray, "b r d"] | None = None
    ref_ids: Float[Array, "1 r axes"] | None = None
    ref_valid: Bool[np.ndarray, "b r"] | None = None
    ref_bias: Float[np.ndarray, "b r"] | None = None
    style_owner: Int[np.ndarray, "b n"] | None = None  # number of the style, from 1, that an image belongs to
    ref_owner: Int[np.ndarray, "b r"] | None = None
    regions: Regions | None = None  # how much these styles count where; with a tiling, its target has all tiles
    negative: dict[str, Int[np.ndarray, "b _"]] | None = None  # tokens of what classifier-free guidance moves away from
    negative_scale: Float[np.ndarray, " b"] | None = None  # of that guidance; None: `guidance` is its scale
    guided: tuple[float, float] = (0.0, 1.0)  # share of the schedule from which, and up to which, it counts
    total_steps: int = 0  # of the schedule, with those that an image to edit leaves out
    isolated: flow.Isolated = "none"
    step_cache: Float[np.ndarray, " b"] | None = None  # threshold of `uso_jax.models.step_cache`; None: no cache
    solver: flow.Solver = "euler"
    start: Float[np.ndarray, "b l d"] | None = None  # latents of images to edit; sampling begins at the first time
    drawn: Float[np.ndarray, "b l d"] | None = None  # how much of each latent is drawn anew; None: all
    variation_seeds: UInt32[np.ndarray, "b 2"] | None = None
    variation: Float[np.ndarray, " b"] | None = None  # how far the noise is moved towards that of the other seeds
    whole: tuple[int, int] = (0, 0)  # (height, width) of the image whose tiles are the batch

    def is_guided(self, step: int) -> bool:
        """Whether a step has a second pass with the negative text."""
        if self.negative is None:
            return False
        skipped = self.total_steps - (self.times.shape[1] - 1)
        return self.guided[0] <= (skipped + step) / self.total_steps < self.guided[1]
