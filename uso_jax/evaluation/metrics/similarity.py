# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics that compare an image with images or text through a network: cosines, LPIPS, Gram distance.

Sources: arXiv 2103.00020 (CLIP), 2104.14294 (DINO), 2404.01292 (CSD), 1801.03924 (LPIPS), 1508.06576 (Gram matrices).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from uso_jax.evaluation.gallery import Sample, pixels
from uso_jax.evaluation.metrics.base import Metric, Tools
from uso_jax.evaluation.metrics.lpips import SMALLEST, Perceptual
from uso_jax.evaluation.score_log import Failed, Result


class Cosine:
    """The mean cosine between an image's embedding and those of its references."""

    def __init__(self, metric: Metric, tools: Tools):
        self.metric = metric
        self.networks = tools.need("networks", metric)
        self.identity = self.networks.identity(metric.vector)

    def __call__(self, samples: Sequence[Sample]) -> list[Result]:
        references = [list(self.metric.references(sample.item)) for sample in samples]
        paths = [str(sample.path) for sample in samples] + [path for found in references for path in found]
        vectors = self.networks.images(self.metric.vector, paths)
        made, wanted = vectors[: len(samples)], iter(vectors[len(samples) :])
        return [
            {self.metric.name: float(np.mean([x @ next(wanted) for _ in found]))}
            for x, found in zip(made, references, strict=True)
        ]


class TextCosine:
    """The cosine between the embeddings of an image and its prompt."""

    def __init__(self, metric: Metric, tools: Tools):
        self.metric = metric
        self.networks = tools.need("networks", metric)
        self.identity = self.networks.identity(metric.vector, text=True)

    def __call__(self, samples: Sequence[Sample]) -> list[Result]:
        images = self.networks.images(self.metric.vector, [str(sample.path) for sample in samples])
        words = self.networks.texts(self.metric.vector, [self._words(sample) for sample in samples])
        cosines = np.sum(images * words, axis=1)
        return [{self.metric.name: float(x)} for x in cosines]

    def _words(self, sample: Sample) -> str:
        own = self.metric.options.get("words")  # key of `meta` that replaces the prompt
        return sample.item.meta[own] if own else sample.item.prompt


class Distance:
    """LPIPS ("lpips") or Gram distance ("gram") to the references; lower is closer.

    LPIPS resizes the image to the reference's size. With `options["enlarge"]`, it then enlarges both to that many
    pixels if they are smaller, which the original does not. Gram resizes both to 224 x 224 pixels.
    """

    def __init__(self, metric: Metric, tools: Tools):
        self.metric, self.gram = metric, metric.kind == "gram"
        network, enlarge = metric.options.get("network", "vgg16"), metric.options.get("enlarge", 0)
        self.perceptual = _perceptual(224 if self.gram else enlarge, network)
        self.smallest = 0 if self.gram or enlarge else SMALLEST[network]
        seen = "PIL bicubic to 224 squared, ImageNet's norm"
        if not self.gram:
            enlarged = f", smaller ones enlarged to {enlarge}" if enlarge else ""
            seen = f"PIL bicubic to the reference's size, [-1, 1]{enlarged}"
        self.identity = {"networks": {network: self.perceptual.fingerprint}, "preprocess": seen}

    def __call__(self, samples: Sequence[Sample]) -> list[Result]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: Sample) -> Result:
        values = []
        for path in self.metric.references(sample.item):
            made, wanted = sample.pixels, pixels(path)
            size = (224, 224) if self.gram else wanted.shape[1::-1]
            if min(size) < self.smallest:
                return Failed(
                    f"{path} is {size[0]} x {size[1]}; the network needs at least {self.smallest} pixels a side"
                )
            made, wanted = (_float(_sized(x, size)) for x in (made, wanted))
            distance = self.perceptual.gram_distance if self.gram else self.perceptual.lpips
            values.append(float(distance(made, wanted)[0]))
        return {self.metric.name: float(np.mean(values))}


@functools.lru_cache(maxsize=4)
def _perceptual(size: int, network: str) -> Perceptual:
    """Return the network, read and compiled once for all metrics and models of a command."""
    return Perceptual(size, network)


def _sized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[1::-1] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _float(image: np.ndarray) -> jax.Array:
    return jnp.asarray(image[None].astype(np.float32) / 127.5 - 1)
