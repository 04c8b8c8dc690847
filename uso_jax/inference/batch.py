# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Batches of requests: which requests share one, and the arrays of a batch.

Requests with different references share a batch. Missing references are masked zeros, which equals leaving them out.
"""

from collections.abc import Sequence

import numpy as np

from uso_jax.common.errors import InputError
from uso_jax.inference.conditions import Conditions
from uso_jax.inference.reference_encoder import EncodedReferences
from uso_jax.inference.regions import regions_of
from uso_jax.inference.request import Request
from uso_jax.models.uso import USO


def group_requests(requests: Sequence[Request], batch_size: int) -> list[list[int]]:
    """Divide requests into batches that run in one program each. Return the indices of each batch.

    Raises:
      InputError: batch_size is less than 1.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    groups: list[list[int]] = []
    for i, request in enumerate(requests):
        for group in groups:
            if len(group) < batch_size and all(_compatible(request, requests[other]) for other in group):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def _compatible(a: Request, b: Request) -> bool:
    kinds = lambda request: (
        request.has_strengths,
        request.canvas is not None,
        request.options.true_guidance != 1,
        request.options.step_cache > 0,
    )
    if a.options.batch_key() != b.options.batch_key() or kinds(a) != kinds(b):
        return False
    # The shorter list of content sizes must be a prefix of the longer one, so that position ids agree.
    return all(p.shape == q.shape for p, q in zip(a.contents, b.contents, strict=False))


def make_conditions(system: USO, batch: Sequence[Request], encoded: EncodedReferences) -> Conditions:
    """Stack the inputs of compatible requests."""
    options, first = [request.options for request in batch], batch[0].options
    tokens = [system.config.text.tokenize(request.prompt) for request in batch]
    taken = batch[0].num_steps + 1
    times = [system.schedule(one.num_steps, one.height, one.width, one.shift)[-taken:] for one in options]
    conditions = Conditions(
        height=first.height,
        width=first.width,
        tokens={name: np.stack([t[name] for t in tokens]) for name in tokens[0]},
        seeds=_seeds([one.seed for one in options]),
        times=np.stack(times).astype(np.float32),
        guidance=np.asarray([one.guidance for one in options], np.float32),
        round_down=first.reference_mode == "upstream",
    )
    true = not system.classifier_free and first.true_guidance != 1
    if true:
        conditions.negative_scale = np.asarray([one.true_guidance for one in options], np.float32)
    if true or (system.classifier_free and any(one.guidance != 1 for one in options)):
        tokens = [system.config.text.tokenize(one.negative_prompt) for one in options]
        conditions.negative = {name: np.stack([t[name] for t in tokens]) for name in tokens[0]}
        conditions.guided = first.guidance_steps
        conditions.total_steps = first.num_steps
    conditions.isolated, conditions.solver = first.isolated, first.solver
    if first.step_cache > 0:
        conditions.step_cache = np.asarray([one.step_cache for one in options], np.float32)
    if any(one.variation for one in options):
        conditions.variation = np.asarray([one.variation for one in options], np.float32)
        conditions.variation_seeds = _seeds([one.variation_seed for one in options])
    if batch[0].canvas is not None:
        conditions.start = np.stack([encoded.start(request) for request in batch])
        if any(request.canvas.drawn is not None for request in batch):
            sizes = latent_sizes(system)
            conditions.drawn = np.stack([request.canvas.latent_weights(*sizes) for request in batch])
    masked, weighted = any(request.style_masks for request in batch), batch[0].has_strengths
    if masked:
        grid = system.token_grid(first.height, first.width)
        conditions.regions = regions_of([request.style_masks for request in batch], grid)
    if any(request.styles for request in batch):
        styles = [encoded.features(request) for request in batch]
        rows = [[image for style in row for image in style] for row in styles]
        strengths = [
            [strength for strength, style in zip(one.style_strength, row, strict=True) for _ in style]
            for one, row in zip(options, styles, strict=True)
        ]
        conditions.features, valid = _stack(rows)
        conditions.style_valid, conditions.style_bias = _attention(valid, strengths, weighted)
        if masked:
            owners = [
                [number for number, style in enumerate(row, 1) for _ in style] if request.style_masks else []
                for request, row in zip(batch, styles, strict=True)
            ]
            conditions.style_owner = _owners(owners, valid.shape)
    if any(request.contents for request in batch):
        longest = max((request.contents for request in batch), key=len)
        grids = [system.token_grid(*pixels.shape[:2]) for pixels in longest]
        rows = [[token for latent in encoded.latents(request) for token in latent] for request in batch]
        strengths = [[one.content_strength] * len(row) for one, row in zip(options, rows, strict=True)]
        conditions.ref_img, valid = _stack(rows)
        for row, request in zip(valid, batch, strict=True):
            if request.counted is not None:
                row[: len(request.counted)] &= request.counted
        conditions.ref_valid, conditions.ref_bias = _attention(valid, strengths, weighted)
        if any(request.plain_styles for request in batch):
            conditions.ref_owner = _owners([_of_references(request, encoded) for request in batch], valid.shape)
        conditions.ref_ids = system.reference_ids(system.token_grid(first.height, first.width), grids, first.pe)
    return conditions


def latent_sizes(system: USO) -> tuple[int, int, int]:
    """Return the arguments of `Canvas.latent_weights`."""
    c = system.config
    return c.autoencoder.downscale, c.patch, c.transformer.in_channels


def _seeds(values: Sequence[int]) -> np.ndarray:
    """Return the halves of seeds of 64 bits."""
    return np.asarray([divmod(value, 2**32) for value in values], np.uint32)


def _stack(rows: list[list[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Stack rows of different lengths. Return the padded array [b, longest, ...] and the mask [b, longest]."""
    longest = max(map(len, rows))
    padding = np.zeros_like(next(x for row in rows for x in row))
    stacked = np.stack([np.stack([*row, *[padding] * (longest - len(row))]) for row in rows])
    return stacked, np.arange(longest)[None] < np.asarray([[len(row)] for row in rows])


def _owners(rows: list[list[int]], shape: tuple[int, int]) -> np.ndarray:
    """Return the style that each token or image belongs to, from 1, padded with 0: to none."""
    owners = np.zeros(shape, np.int32)
    for owner, row in zip(owners, rows, strict=True):
        owner[: len(row)] = row
    return owners


def _of_references(request: Request, encoded: EncodedReferences) -> list[int]:
    latents = encoded.latents(request)
    contents = len(latents) - request.plain_styles
    return [max(number - contents, 0) for number, latent in enumerate(latents, 1) for _ in latent]


def _attention(
    valid: np.ndarray, strengths: list[list[float]], weighted: bool
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the mask, and the bias of the logits: log(strength). A strength of 0 is masked instead.

    The mask is None where everything is valid, because attention is faster without it.
    """
    bias = None
    if weighted:
        factors = np.ones(valid.shape, np.float32)
        for row, values in zip(factors, strengths, strict=True):
            row[: len(values)] = values
        valid, bias = valid & (factors > 0), np.log(np.where(factors > 0, factors, 1))
    return None if valid.all() else valid, bias
