# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Exact scores of drawn images: compare with counterfactual targets in which one factor is changed.

A procedural source can draw, for every triplet, the target with other subjects and the target in other styles. An image
has the right content if the true target is the nearest among the former, and the right style if it is the nearest among
the latter. No learned network is involved. With a shifted layout the target's pose is unknown, so these scores require
a preserved layout.

All candidates for the content have the target's style, so an image in another style fails by its style alone. A second
verdict also admits every subject in the flat style, in the target's colours: it asks for the subject, not for its look.

By patches, the style is right if the image's patches have nearer neighbours in other drawings of the target's style
than in drawings of any other style, whatever they show and wherever a texture begins. Without a content image, when
subject and pose are unknown, this is the only verdict.

As a metric, for items from the procedural source:

    truth_content, truth_style    1 if the nearest counterfactual is the true one, otherwise 0
    truth_content_margin, ...     relative margin between the true counterfactual and the nearest other; positive: right
    truth_mse                     mean squared error of pixel values in [0, 1]

Shapes: n images, m candidates or patches, j patches of a set, k styles, h w pixels, d values of a patch.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from uso_jax.common.errors import InputError
from uso_jax.data.drawings.source import ProceduralSource
from uso_jax.data.triplet import Triplet
from uso_jax.evaluation.gallery import Sample
from uso_jax.evaluation.metrics.base import Metric, Tools
from uso_jax.evaluation.score_log import Result

Images = UInt8[np.ndarray, "n h w 3"]
WISHES = dict(preserved=1.0, style_words=0.0, same_look=0.0, plain=1.0)
"""Source options for scored triplets: only images determine the style, and single subjects have their plain look."""

NUM_DRAWINGS = 12  # drawings per style that provide patches


@runtime_checkable
class TruthfulSource(Protocol):
    """A source that can redraw its targets with one factor changed."""

    def counterfactuals(self, triplet: Triplet) -> tuple[Images, Images]:
        """Return the target with other subjects, and in other styles; the true target is first in both."""
        ...

    def style_drawings(self, triplet: Triplet, count: int, rng: np.random.Generator) -> list[Images]:
        """Return sets of `count` drawings of other subjects: first in the target's style, then in other styles."""
        ...

    def flat_subjects(self, triplet: Triplet) -> Images | None:
        """Return the target flat, with every subject, the true one first; None if the source has no flat style."""
        ...


class Counterfactuals:
    """Scores images against the counterfactuals of a list of triplets, which are drawn once.

    Args:
      source: draws the counterfactuals.
      triplets: with preserved layouts.
      styles: judge styles too, which triplets without a style image cannot specify.

    Raises:
      InputError: a triplet has a shifted layout.
    """

    def __init__(self, source: TruthfulSource, triplets: Sequence[Triplet], styles: bool = True):
        if shifted := [t.key for t in triplets if t.layout != "preserved"]:
            raise InputError(f"{shifted[0]} has a shifted layout, so its pose is unknown; use preserved layouts")
        self.targets = np.stack([t.target for t in triplets])
        self._candidates = [source.counterfactuals(t) for t in triplets]
        self._flat = [source.flat_subjects(t) for t in triplets]
        self._patches = Styles(source, triplets) if styles else None

    def per_image(self, images: Images) -> dict[str, Float64[np.ndarray, " n"]]:
        """Return verdicts of content and style, 0 or 1, and the squared error of pixel values in [0, 1], per image.

        Chance is one in the number of candidates.
        """
        pairs = list(zip(images, self._candidates, strict=True))
        found = {
            "content_accuracy": _verdicts(_nearest(image, content) == 0 for image, (content, _) in pairs),
            "mse": np.mean(((images.astype(np.float64) - self.targets) / 255) ** 2, axis=(1, 2, 3)),
        }
        if all(flat is not None for flat in self._flat):
            found["content_flat_accuracy"] = _verdicts(
                _nearest(image, np.concatenate([content, flat])) in (0, len(content))
                for (image, (content, _)), flat in zip(pairs, self._flat, strict=True)
            )
        if self._patches is not None:
            found["style_accuracy"] = _verdicts(_nearest(image, style) == 0 for image, (_, style) in pairs)
            found["style_patch_accuracy"] = self._patches.per_image(images)["style_accuracy"]
        return found


class Styles:
    """Scores the style of images by their patches, for tasks in which the pose is unknown."""

    def __init__(self, source: TruthfulSource, triplets: Sequence[Triplet]):
        self._drawn = [style_sets(source, triplet) for triplet in triplets]

    def per_image(self, images: Images) -> dict[str, Float64[np.ndarray, " n"]]:
        """Return the verdicts of the style, 0 or 1. Chance is one in the number of styles."""
        nearest = (np.argmin(distances(*pair)) for pair in zip(images, self._drawn, strict=True))
        return {"style_accuracy": _verdicts(number == 0 for number in nearest)}


def _verdicts(found: Iterable[bool]) -> Float64[np.ndarray, " n"]:
    return np.array([float(verdict) for verdict in found])


def style_sets(source: TruthfulSource, triplet: Triplet) -> list[Images]:
    """Return sets of drawings, one per style, the target's style first; deterministic for a triplet."""
    return source.style_drawings(triplet, NUM_DRAWINGS, np.random.default_rng(list(triplet.key.encode())))


def errors(image: UInt8[np.ndarray, "h w 3"], candidates: UInt8[np.ndarray, "m h w 3"]) -> Float64[np.ndarray, " m"]:
    """Return an image's mean squared error to every candidate, for pixel values from 0 to 255."""
    return np.mean((candidates.astype(np.float64) - image) ** 2, axis=(1, 2, 3))


def _nearest(image: np.ndarray, candidates: np.ndarray) -> int:
    return int(np.argmin(errors(image, candidates)))


_PATCH = 5


def distances(
    image: UInt8[np.ndarray, "h w 3"], sets: Sequence[UInt8[np.ndarray, "n h w 3"]]
) -> Float64[np.ndarray, " k"]:
    """Return, for each set, the mean squared distance of an image's patches to their nearest patch in the set."""
    stride = max(2, image.shape[0] // 16)  # a fixed stride would cost 16 times as much at twice the side
    own = _patches(image[None], stride)
    return np.array([_distance(own, _patches(images, stride)) for images in sets])


def _patches(images: UInt8[np.ndarray, "n h w 3"], stride: int) -> Float32[np.ndarray, "m d"]:
    windows = np.lib.stride_tricks.sliding_window_view(images, (_PATCH, _PATCH), axis=(1, 2))
    return windows[:, ::stride, ::stride].reshape(-1, 3 * _PATCH * _PATCH).astype(np.float32) / 255


def _distance(own: Float32[np.ndarray, "m d"], other: Float32[np.ndarray, "j d"]) -> float:
    nearest = ((other**2).sum(1) - own @ (2 * other).T).min(1) + (own**2).sum(1)
    return float(np.maximum(nearest, 0).mean())


class Truth:
    """The exact scores as a metric."""

    def __init__(self, metric: Metric, tools: Tools):
        self.metric, self.identity = metric, {"truth": "nearest counterfactual, nearest patches"}

    def __call__(self, samples: Sequence[Sample]) -> list[Result]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: Sample) -> Result:
        drawn = sample.item.meta["procedural"]
        source = procedural(*(drawn[name] for name in ("split", "seed", "size", "task", "preserved")))
        triplet = source[drawn["index"]]
        if sample.pixels.shape != triplet.target.shape:
            raise InputError(
                f"{sample.path} has the wrong size; this benchmark requires {triplet.target.shape[0]} pixels squared"
            )
        if triplet.content is None:
            found = distances(sample.pixels, style_sets(source, triplet))
            return _judgement("style", found)
        contents, styles = source.counterfactuals(triplet)
        found = {"truth_mse": float(np.mean((sample.pixels.astype(float) - triplet.target) ** 2) / 255**2)}
        for name, candidates in (("content", contents), ("style", styles)):
            if name == "style" and not triplet.styles:
                continue
            found |= _judgement(name, errors(sample.pixels, candidates))
        return found


@functools.lru_cache(maxsize=8)
def procedural(split: str, seed: int, size: int, task: str, preserved: float) -> ProceduralSource:
    """Return the drawing source of one of mini's tasks."""
    wishes = WISHES | dict(tasks={task: 1.0}, preserved=preserved)
    return ProceduralSource(split=split, seed=seed, size=size, **wishes)


def margin(distances: Float64[np.ndarray, " m"]) -> float:
    """Return how much nearer the first candidate is than all others, -1 to 1; positive: it is the nearest."""
    true, *others = distances.tolist()
    nearest = min(others)
    return (nearest - true) / max(nearest, true, 1e-12)


def _judgement(name: str, distances: Float64[np.ndarray, " m"]) -> dict[str, float]:
    found = margin(distances)
    return {f"truth_{name}": float(found > 0), f"truth_{name}_margin": found}
