# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Enlarging an image: its details are drawn again, in tiles of at most the size that the weights are trained for."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image

from uso_jax.images.reference import Reference
from uso_jax.inference.batch import latent_sizes, make_conditions
from uso_jax.inference.canvas import Canvas
from uso_jax.inference.conditions import Conditions
from uso_jax.inference.reference_encoder import EncodedReferences
from uso_jax.inference.regions import regions_of
from uso_jax.inference.request import Request
from uso_jax.inference.sampler import Progress, Sampler
from uso_jax.inference.tiling import Tiling
from uso_jax.models.layers.regions import Regions
from uso_jax.models.uso import USO
from uso_jax.weights.pretrained import Defaults

_TILES = 4  # that are drawn at once, where no batch size is given


@dataclass(frozen=True)
class Enlarger:
    """A sampler, and the size that its weights are trained for."""

    system: USO
    sampler: Sampler
    defaults: Defaults

    def enlarge(
        self,
        request: Request,
        image: Image.Image,
        encoded: EncodedReferences,
        batch_size: int | None,
        report: Progress,
    ) -> Image.Image:
        """Return the image of a request at `upscale` times its size; what its mask keeps is only resized."""
        side = self.system.config.pixels_per_token
        sizes = [round(length * request.options.upscale) // side * side for length in image.size]
        canvas = request.canvas or Canvas(Reference.of(image), np.asarray(image))
        canvas = dataclasses.replace(canvas, pixels=np.asarray(image)).resized(*sizes)
        if request.upscale_steps == 0:
            return Image.fromarray(canvas.pixels)
        trained = self.defaults.height // side * side, self.defaults.width // side * side
        height, width = (min(most, own) for most, own in zip(trained, canvas.pixels.shape[:2], strict=True))
        shards = self.sampler.data_shards
        at_once = -(-(batch_size or _TILES) // shards) * shards
        start = self.sampler.latents(canvas.pixels, tiled=True)
        conditions, tiling = self._tiles(request, encoded, canvas, start, (height, width), at_once)
        return Image.fromarray(canvas.paste(self.sampler.run(conditions, report, tiling)[0][0]))

    def _tiles(
        self,
        request: Request,
        encoded: EncodedReferences,
        canvas: Canvas,
        start: Float[np.ndarray, "n d"],
        tile: tuple[int, int],
        at_once: int,
    ) -> tuple[Conditions, Tiling]:
        """Return the inputs of the tiles of an enlarged image, and where they lie.

        Args:
          request: of the image.
          encoded: the request's references.
          canvas: the enlarged image; what its mask keeps is kept.
          start: its latents.
          tile: (height, width) of a tile in pixels.
          at_once: tiles of a step.
        """
        height, width = canvas.pixels.shape[:2]
        tiling = Tiling.of(self.system.token_grid(height, width), self.system.token_grid(*tile), at_once)
        # What a step leaves to the next one would be needed for each tile, and few steps are left to use it.
        alone = dict(step_cache=0.0, solver="euler")
        options = dataclasses.replace(request.options, height=tile[0], width=tile[1], **alone)
        plain = dataclasses.replace(request, canvas=None, options=options)
        conditions = make_conditions(self.system, [plain] * at_once, encoded)
        conditions.times = conditions.times[:, -request.upscale_steps - 1 :]
        conditions.seeds = conditions.seeds[:1]
        if conditions.variation is not None:
            conditions.variation, conditions.variation_seeds = conditions.variation[:1], conditions.variation_seeds[:1]
        conditions.start, conditions.whole = start[None], (height, width)
        if request.style_masks:
            whole = regions_of([request.style_masks], self.system.token_grid(height, width))
            conditions.regions = Regions(whole.target[0][tiling.index], np.repeat(whole.others, at_once, axis=0))
        if canvas.drawn is not None:
            conditions.drawn = canvas.latent_weights(*latent_sizes(self.system))[None]
        return conditions, tiling
