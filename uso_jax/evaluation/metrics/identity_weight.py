# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How much of each source image appears in a composition (MICo-Bench, compute_weights.py)."""

from collections.abc import Mapping, Sequence

import numpy as np

from uso_jax.common.errors import InputError
from uso_jax.evaluation.gallery import Sample
from uso_jax.evaluation.metrics.base import Metric, Tools
from uso_jax.evaluation.metrics.vlm import Asked, AsksJudge
from uso_jax.evaluation.score_log import Failed, Result, readings

FACE_NETWORK = "arcface"  # to which the thresholds belong


class IdentityWeight(AsksJudge):
    """MICo-Bench's "weight": how much of each source image appears, from 0 to 1, averaged over sources.

    A source with a person (`meta["human_indices"]`) is weighted by the best cosine between its largest face and the
    image's faces. Any other source is weighted by the judge's yes or no. With several people, a source without a
    detected face makes the weight of all people 0; other sources still count. The official rule counts an unclear
    answer as no, and gives an image without embeddings the weight 1.
    """

    def __init__(self, metric: Metric, tools: Tools):
        super().__init__(metric, tools)
        self.faces = tools.faces
        if self.faces is not None and FACE_NETWORK not in self.faces.networks:
            raise InputError(
                f"--faces has embeddings of {', '.join(self.faces.networks)}; MICo-Bench's thresholds belong to"
                f" ArcFace: name its arrays {FACE_NETWORK}/SHA256"
            )
        self.identity["faces"] = None if self.faces is None else self.faces.identity

    def values(self, sample: Sample) -> Result:
        item = sample.item
        humans = sorted(set(item.meta.get("human_indices") or ()))
        people = [path for number, path in enumerate(item.content_refs) if number in humans]
        others = {str(number): path for number, path in enumerate(item.content_refs) if number not in humans}
        if self.faces is None:
            # The benchmark's code was then run without its first step, so no image has a weight.
            lacking = Failed("faces: no embeddings; pass them with --faces")
            return readings(lacking if people or self.compat else self._weight(sample, others, 0.0), {"weight": 1.0})
        found = [self.faces.faces_in(path, FACE_NETWORK) for path in (*people, str(sample.path))] if people else []
        if any(vectors is None for vectors in found):
            return readings(Failed(f"faces: no embeddings of {sample.path} or its people"), {"weight": 1.0})
        return self._weight(sample, others, face_weights(found[:-1], found[-1]) if people else 0.0)

    def _weight(self, sample: Sample, others: Mapping[str, str], people: float) -> Result:
        """Return the weight of an image from the weight of its people, asking for each other source."""
        weight = lambda said: {"weight": (people + sum(said.values())) / len(sample.item.content_refs)}
        asked = {key: Asked("source", [path], {}) for key, path in others.items()}
        return self.scored(sample, asked, [[key] for key in asked], weight) if asked else weight({})


def face_weights(sources: Sequence[np.ndarray], seen: np.ndarray) -> float:
    """Return the sum of the weights of people: 0 if one of them has no face in its source, or the image has none."""
    if not len(seen) or not all(len(vectors) for vectors in sources):
        return 0.0
    return sum(face_weight(float(np.max(vectors[0] @ seen.T))) for vectors in sources)


def face_weight(cosine: float) -> float:
    """Return MICo-Bench's weight of a face from its cosine with the source's."""
    return next(
        (weight for least, weight in ((0.45, 1.0), (0.30, 0.7), (0.15, 0.5), (0.05, 0.2)) if cosine >= least), 0.0
    )
