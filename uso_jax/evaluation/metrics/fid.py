# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""FID: the Fréchet distance between the sets of generated and true images in Inception's features.

Sources: arXiv 1706.08500; pytorch-fid for the network and the resize (bilinear to 299 x 299, without antialiasing).
Shapes: b n m images, h w pixels, d features.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from uso_jax.evaluation.gallery import Sample, pixels
from uso_jax.evaluation.metrics.base import Metric, Tools
from uso_jax.evaluation.score_log import Failed, Result

_COMPONENT, _SIDE = "inception", 299


class Fid:
    """FID of all images against all references."""

    def __init__(self, metric: Metric, tools: Tools):
        self.metric = metric
        self.networks = tools.need("networks", metric)
        self.identity = self.networks.identity_of(_COMPONENT)

    def whole(self, samples: Sequence[Sample]) -> Result:
        """Return the FID, or Failed with fewer than two images or two references."""
        wanted = dict.fromkeys(path for sample in samples for path in self.metric.references(sample.item))
        if min(len(samples), len(wanted)) < 2:
            return Failed("FID needs at least two images and two references")
        made = self._features([str(sample.path) for sample in samples])
        return {self.metric.name: frechet(made, self._features(list(wanted)))}

    def _features(self, paths: Sequence[str]) -> Float[np.ndarray, "n d"]:
        found, size = [], self.networks.batch_size
        look: Callable = lambda module, x: {"features": module(x)}
        for start in range(0, len(paths), size):
            batch = np.concatenate([np.asarray(resized(pixels(path)[None])) for path in paths[start : start + size]])
            found.append(self.networks.run(_COMPONENT, "features", look, batch)["features"])
        return np.concatenate(found)


@jax.jit
def resized(images: UInt8[Array | np.ndarray, "b h w 3"]) -> Float[Array, "b 299 299 3"]:
    """Resize 8-bit images to Inception's 299 pixels and scale them to [-1, 1]."""
    x = images.astype(jnp.float32) / 255
    return 2 * jax.image.resize(x, (len(x), _SIDE, _SIDE, 3), "bilinear", antialias=False) - 1


def frechet(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]) -> float:
    """Return the squared Fréchet distance between Gaussians with the sets' means and covariances."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    (a, b), (c, e) = ((x.mean(axis=0), np.cov(x, rowvar=False)) for x in (first, second))
    # Trace of the square root of b @ e: root @ e @ root is symmetric and has the same eigenvalues.
    values, vectors = np.linalg.eigh(b)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ e @ root), 0)).sum()
    return float(np.sum((a - c) ** 2) + np.trace(b) + np.trace(e) - 2 * cross)
