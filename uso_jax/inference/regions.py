# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Where each style counts, from its mask: white everywhere it applies, black where it does not, grey in between.

A token weighs a style by what the style's mask covers of the token's own region. The region of a token of the target is
its place in the image; that of a style's token is the style's mask; that of text and content is the whole image. So a
style whose mask is black is seen by no other token, styles in different places do not see each other, and a mask of one
grey equals that strength.

Shapes: l tokens of the target, m styles.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from uso_jax.common.errors import InputError
from uso_jax.images.reference import ImageLike, Reference
from uso_jax.inference.canvas import FAINT, read_mask
from uso_jax.models.layers.regions import NOWHERE, Regions

Masks = tuple[Reference | None, ...]  # of the styles of one image; None: the style counts everywhere


def read_masks(sources: Any, num_styles: int) -> Masks:
    """Read one mask for each style; none at all if no style has one.

    Raises:
      InputError: there are more or fewer masks than styles, or one is not an image.
    """
    sources = () if sources is None else sources
    if not isinstance(sources, list | tuple):
        raise InputError("style_masks must be a list with one mask for each style, or None where a style has none")
    if all(source is None for source in sources):
        return ()
    if len(sources) != num_styles:
        raise InputError(
            f"style_masks has {len(sources)} masks for {num_styles} styles; pass one for each, and None (a path: empty)"
            " where a style has none"
        )
    return tuple(None if source is None else _read(source, f"mask of style {i}") for i, source in enumerate(sources, 1))


def regions_of(batch: Sequence[Masks], grid: tuple[int, int]) -> Regions:
    """Return the regions of the styles of some images, whose targets have `grid` rows and columns of tokens."""
    styles = max(map(len, batch))
    weights = [_weights((*masks, *[None] * (styles - len(masks))), grid) for masks in batch]
    return Regions(*(np.stack(arrays) for arrays in zip(*weights, strict=True)))


def cover(mask: Reference, grid: tuple[int, int]) -> Float[np.ndarray, " l"]:
    """Return how much of each token of a target a mask covers; the mask is stretched over the target."""
    grey = np.asarray(Image.fromarray(mask.pixels).convert("L"), np.float32) / 255
    grey = np.where(grey < FAINT, np.float32(0), grey)
    covered = Image.fromarray(grey).resize(grid[::-1], Image.Resampling.BOX)
    return np.clip(np.asarray(covered), 0, 1).reshape(-1)


def _read(source: ImageLike | Reference, what: str) -> Reference:
    mask = read_mask(source, what)
    if mask.pixels.max() >= 255 * FAINT:
        return mask
    return dataclasses.replace(mask, notes=(*mask.notes, f"the {what} is black everywhere: the style has no effect"))


def _weights(masks: Masks, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    everywhere = np.ones(grid[0] * grid[1], np.float64)
    target = np.stack([everywhere if mask is None else cover(mask, grid) for mask in masks], axis=1)
    areas = np.concatenate([everywhere[:, None], target], axis=1)
    others = areas.T @ target / np.maximum(areas.sum(axis=0), np.finfo(np.float64).tiny)[:, None]
    return _logarithm(target), _logarithm(others)


def _logarithm(weights: np.ndarray) -> np.ndarray:
    return np.log(weights, out=np.full(weights.shape, NOWHERE), where=weights > 0).astype(np.float32)
