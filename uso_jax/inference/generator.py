# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From requests to images: references are encoded once, images of one size run together, and some are enlarged."""

from collections.abc import Sequence

from PIL import Image

from uso_jax.images.decode import Pixels
from uso_jax.inference.batch import group_requests, make_conditions
from uso_jax.inference.enlarging import Enlarger
from uso_jax.inference.reference_encoder import EncodedReferences, ReferenceEncoder
from uso_jax.inference.request import Request
from uso_jax.inference.sampler import Progress, Sampler
from uso_jax.models.uso import USO
from uso_jax.weights.pretrained import Pretrained


class Generator:
    """Draws with the parameters of a sampler.

    Attributes:
      references: encodes styles and content images.
    """

    def __init__(self, pretrained: Pretrained, system: USO, sampler: Sampler):
        self._system, self._sampler = system, sampler
        self._enlarger = Enlarger(system, sampler, pretrained.defaults)
        self.references = ReferenceEncoder(pretrained, system, sampler)

    def generate(
        self, requests: Sequence[Request], batch_size: int | None = None, progress: Progress | None = None
    ) -> tuple[list[Image.Image], list[int]]:
        """Return the image of each request, and how many of its passes reused the pass before.

        Images of one size run together; missing references are masked.
        """
        groups = group_requests(requests, batch_size or len(requests))
        enlarged = [i for i, request in enumerate(requests) if request.options.upscale > 1]
        total = sum(requests[group[0]].num_steps for group in groups)
        total += sum(requests[i].upscale_steps for i in enlarged)
        done = 0

        def report(phase: str, step: int, _: int) -> None:
            if progress is not None:
                progress(phase, done + step, total)

        if any(one.styles or one.contents or one.canvas is not None for one in requests):
            report("Encoding references", 0, total)
        encoded = self.references.encode(requests)
        images: dict[int, Image.Image] = {}
        reused: dict[int, int] = {}
        for group in groups:
            for i, pixels, count in zip(
                group, *self._drawn([requests[i] for i in group], encoded, report), strict=True
            ):
                images[i], reused[i] = Image.fromarray(pixels), count
            done += requests[group[0]].num_steps
        for i in enlarged:
            images[i] = self._enlarger.enlarge(requests[i], images[i], encoded, batch_size, report)
            done += requests[i].upscale_steps
        return [images[i] for i in range(len(requests))], [reused[i] for i in range(len(requests))]

    def _drawn(
        self, group: Sequence[Request], encoded: EncodedReferences, report: Progress
    ) -> tuple[list[Pixels], list[int]]:
        """Draw one batch. Return its images, and how many passes of each reused the pass before."""
        if group[0].num_steps == 0:  # nothing of the images to edit is drawn
            return [request.canvas.pixels for request in group], [0] * len(group)
        padded = [*group, *[group[-1]] * (-len(group) % self._sampler.data_shards)]
        arrays, reused = self._sampler.run(make_conditions(self._system, padded, encoded), report)
        pairs = zip(group, arrays, strict=False)
        drawn = [pixels if request.canvas is None else request.canvas.paste(pixels) for request, pixels in pairs]
        return drawn, reused[: len(group)].tolist()
