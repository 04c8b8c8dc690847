# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Face similarity between an image and its references, from precomputed embeddings.

Face recognition networks have separate licences, so embeddings are read from a file that any network can fill:

    numpy.savez("faces.npz", **{f"{network}/{sha256 of the image file}": array of [faces, d], largest face first})

An image without faces has an array with no rows. An image without an entry is a failure.
Source: MultiID-Bench (arXiv 2510.14975). Shapes: f m t r w faces, d channels.
"""

import hashlib
import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from uso_jax.common.errors import InputError
from uso_jax.evaluation.gallery import Sample, file_digest
from uso_jax.evaluation.metrics.base import Metric, Tools
from uso_jax.evaluation.score_log import Failed, Result, Skipped

Vectors = Float[np.ndarray, "f d"]
Vector = Float[np.ndarray, " d"]
_WHOLE = ("arcface",)  # the official code compares their faces only if every reference has one
_ANGLE = 1e-6  # angle between target and reference below which copying is undefined


class Embeddings:
    """Face embeddings of length 1, by network and image file."""

    def __init__(self, found: dict[str, dict[str, Vectors]], identity: str):
        self._found, self.identity = found, identity
        self.networks = tuple(found)

    @classmethod
    def read(cls, path: str | pathlib.Path) -> "Embeddings":
        """Load an .npz file of embeddings; pickled objects are rejected.

        Raises:
          InputError: the file is not readable, is empty, or an array has another name or shape.
        """
        found: dict[str, dict[str, Vectors]] = {}
        try:
            with np.load(path, allow_pickle=False) as arrays:
                for name in arrays.files:
                    network, _, image = name.rpartition("/")
                    value = arrays[name]
                    if not network or value.ndim != 2 or value.dtype.kind != "f":
                        raise InputError(
                            f"{path}: {name!r} must be named NETWORK/SHA256 and be a float array [faces, d]"
                        )
                    length = np.linalg.norm(value, axis=1, keepdims=True)
                    found.setdefault(network, {})[image] = value / np.maximum(length, 1e-12)
        except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is not a readable .npz file of arrays ({error})") from error
        if not found:
            raise InputError(f"{path} has no embeddings; see docs/evaluate.md")
        return cls(found, hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:16])

    def faces_in(self, path: str, network: str | None = None) -> Vectors | None:
        """Return the embeddings of an image's faces by a network (default: the first), or None without an entry."""
        return self._found[network or self.networks[0]].get(file_digest(path))


def match(made: Float[np.ndarray, "m d"], wanted: Float[np.ndarray, "w d"]) -> list[tuple[int, int, float]]:
    """Return the assignment of faces that maximises the sum of cosines, as (index made, index wanted, cosine)."""
    cosines = made @ wanted.T
    return [(int(i), int(j), float(cosines[i, j])) for i, j in zip(*linear_sum_assignment(-cosines), strict=True)]


def copy_paste(made: Vector, target: Vector, reference: Vector) -> float:
    """Return where a face lies between target (-1) and reference (1), by angles; 0 if the two coincide."""
    angle = lambda x, y: float(np.arccos(np.clip(x @ y, -1, 1)))
    whole = angle(target, reference)
    return 0.0 if whole < _ANGLE else (angle(made, target) - angle(made, reference)) / whole


class Faces:
    """MultiID-Bench's figures for each network: sim_gt, sim_ref, copy_paste and, with several people, blending."""

    def __init__(self, metric: Metric, tools: Tools):
        self.metric = metric
        self.embeddings = tools.need("faces", metric)
        known = metric.options["networks"]
        if unknown := set(self.embeddings.networks) - set(known):
            names = " or ".join(f"{network}/SHA256" for network in known)
            raise InputError(f"--faces: unknown network {min(unknown)!r}; name the arrays {names}")
        self.identity = {"faces": self.embeddings.identity, "networks": list(self.embeddings.networks)}

    def __call__(self, samples: Sequence[Sample]) -> list[Result]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: Sample) -> Result:
        values, missing = {}, []
        for network in self.embeddings.networks:
            files = [str(sample.path), *([sample.item.target] if sample.item.target else []), *sample.item.content_refs]
            found = [self.embeddings.faces_in(file, network) for file in files]
            if missing := [file for file, vectors in zip(files, found, strict=True) if vectors is None]:
                return Failed(f"faces: no embeddings of {missing[0]} by {network}")
            made, wanted = found[0], found[1] if sample.item.target else None
            references = [vectors[:1] for vectors in found[1 + (wanted is not None) :]]
            given = np.concatenate(references)
            if network in _WHOLE and len(given) < len(references):
                given = given[:0]
            of = figures(made, wanted, given, len(references))
            values |= {f"{name}_{network}": value for name, value in of.items()}
        return values or Skipped("no face was detected in the image, or in both the target and the references")


def figures(
    made: Float[np.ndarray, "m d"],
    target: Float[np.ndarray, "t d"] | None,
    references: Float[np.ndarray, "r d"],
    people: int | None = None,
) -> dict[str, float]:
    """Return the figures of one image for one network, as arcface_metric.py computes them.

    Args:
      made: faces of the generated image; without any, there are no figures.
      target: faces of the ground-truth image; None or no face omits sim_gt and copy_paste.
      references: one face per reference image; without any, there are no figures that need them.
      people: number of reference images; by default that of `references`.
    """
    found = {}
    if len(made) and len(references):
        pairs, cosines = match(made, references), made @ references.T
        found["sim_ref"] = float(np.mean([cosine for *_, cosine in pairs]))
        others = np.ones(cosines.shape, bool)
        others[tuple(zip(*[(i, j) for i, j, _ in pairs], strict=True))] = False
        if others.any() and (len(references) if people is None else people) > 1:
            found["blending"] = float(np.mean(cosines[others]))
    if len(made) and target is not None and len(target):
        to_target = match(made, target)
        found["sim_gt"] = float(np.mean([cosine for *_, cosine in to_target]))
        if len(made) == len(target) == len(references):
            person = {i: j for i, j, _ in pairs}
            copies = [copy_paste(made[i], target[j], references[person[i]]) for i, j, _ in to_target]
            found["copy_paste"] = float(np.mean(copies))
    return found
