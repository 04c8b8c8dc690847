# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Aspect-ratio buckets: a few fixed image sizes, so that every batch has one of a few static shapes.

`sizes` scales aspect ratios to a stage's area and `smaller_sizes` to further areas, `sizes_of` reads the image sizes of
a source, `assign` maps triplets to the nearest bucket, and `share_out` combines them. A bucket is a pair of target size
and content size.

UNO's trainer has eleven sizes at 512 x 512 and resizes a whole batch to the one nearest to its mean shape, which
distorts images. Here each triplet goes to the bucket nearest to its own shapes and is cropped.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32

from uso_jax.common.errors import BadExample, InputError
from uso_jax.data.triplet import TripletSource

Size = tuple[int, int]  # (height, width)
Sizes = tuple[Size, ...]
Shape = tuple[Size, Size]  # (target size, content size)

_TALL = ((768, 256), (768, 320), (704, 320), (640, 384), (576, 448))
UNO: Sizes = (*((w, h) for h, w in _TALL), (512, 512), *reversed(_TALL))
BASE = 512  # aspects are given at BASE x BASE pixels


def sizes(aspects: Sequence[Size], like: Size, multiple: int) -> Sizes:
    """Scale aspects, given at 512 x 512, to the area of `like`.

    Args:
      aspects: (height, width) at 512 x 512. Empty means `like` alone.
      like: (height, width) in pixels, whose area is kept.
      multiple: sides are rounded down to multiples of it (pixels per token).
    """
    return _scaled(aspects, _side(like) / BASE, multiple) if aspects else (tuple(like),)


def smaller_sizes(aspects: Sequence[Size], like: Size, areas: Sequence[int], multiple: int) -> tuple[Sizes, ...]:
    """Return what `sizes` does for further areas, the largest first.

    Args:
      areas: sides of squares that have these areas, in pixels.
      aspects, like, multiple: those of `sizes`; without aspects, the shape of `like` is kept.
    """
    shapes, side = (aspects, BASE) if aspects else ((like,), _side(like))
    return tuple(_scaled(shapes, area / side, multiple) for area in sorted(areas, reverse=True))


def _side(size: Size) -> float:
    return (size[0] * size[1]) ** 0.5


def _scaled(shapes: Sequence[Size], scale: float, multiple: int) -> Sizes:
    side = lambda length: max(int(length * scale + 1e-6) // multiple, 1) * multiple
    return tuple(dict.fromkeys((side(height), side(width)) for height, width in shapes))


def assign(
    found: Int32[np.ndarray, "n 4"],
    targets: Sequence[Size],
    contents: Sequence[Size],
    at_least: int,
    smaller: Sequence[Sequence[Size]] = (),
) -> dict[Shape, np.ndarray | None]:
    """Assign each triplet to the nearest bucket.

    Args:
      found: (height, width) of target and content of every triplet, 0 where unknown. A triplet without a content image
        is placed by its target's shape; one of unknown shape goes to the most common bucket.
      targets, contents: allowed target and content sizes.
      at_least: a bucket with fewer triplets is not worth a compilation; they go to the most similar bucket with enough,
        to one of a larger area only if there is no other.
      smaller: target sizes of further areas, the largest area first. A target has the largest area to which it is not
        scaled up, or else the smallest.

    Returns:
      The triplet indices of every bucket; None if one bucket has all.
    """
    whole = {(tuple(targets[0]), tuple(contents[0])): None}
    if len(targets) == len(contents) == 1 and not smaller:
        return whole
    kinds, kind_of = (found[:1], np.zeros(len(found), np.int64)) if _same(found) else _unique(found)
    areas = (targets, *smaller)
    shapes = [_nearest(kind, areas, contents) for kind in kinds.tolist()]
    counts: dict[Shape, int] = {}
    for shape, count in zip(shapes, np.bincount(kind_of, minlength=len(kinds)).tolist(), strict=True):
        if shape is not None:
            counts[shape] = counts.get(shape, 0) + count
    if not counts:
        return whole
    commonest = max(counts, key=counts.get)
    large = [shape for shape, count in counts.items() if count >= at_least] or [commonest]
    level = {size: number for number, group in reversed([*enumerate(areas)]) for size in group}

    def cost(shape: Shape, other: Shape) -> tuple[int, float, int]:
        down = level[other[0]] - level[shape[0]]
        return max(-down, 0), _distance(shape, other), down

    homes = {shape: min(large, key=lambda other, s=shape: cost(s, other)) for shape in counts}
    names = sorted(set(homes.values()))
    home = np.asarray([names.index(homes[commonest if shape is None else shape]) for shape in shapes])[kind_of]
    if len(names) == 1:
        return {names[0]: None}
    return {shape: np.flatnonzero(home == number) for number, shape in enumerate(names)}


def _same(found: np.ndarray) -> bool:
    return found.strides[0] == 0 or bool((found == found[0]).all())


def _unique(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kinds, kind_of = np.unique(found, axis=0, return_inverse=True)
    return kinds, kind_of.reshape(-1)


def _nearest(kind: Sequence[int], areas: Sequence[Sequence[Size]], contents: Sequence[Size]) -> Shape | None:
    target, content = tuple(kind[:2]), tuple(kind[2:])
    if 0 in target:
        return None
    shape = target if 0 in content else content
    closest = [min(sizes, key=lambda s: _log(s, target)) for sizes in areas]
    covered = (size for size in closest if size[0] <= target[0] and size[1] <= target[1])
    return next(covered, closest[-1]), min(contents, key=lambda s: _log(s, shape))


def _log(a: Size, b: Size) -> float:
    """Return the distance of two shapes: the absolute log of the ratio of their aspect ratios."""
    return abs(float(np.log(a[0] * b[1] / (a[1] * b[0]))))


def _distance(a: Shape, b: Shape) -> float:
    # Pixels cropped from the target are lost as supervision, so they count twice.
    return 2 * _log(a[0], b[0]) + _log(a[1], b[1])


def count_triplets(shapes: Mapping[Shape, np.ndarray | None], length: int) -> dict[Shape, int]:
    """Return the number of triplets in each bucket; `length` is that of the source."""
    return {shape: length if indices is None else len(indices) for shape, indices in shapes.items()}


def share_out(
    source: TripletSource,
    targets: Sequence[Size],
    contents: Sequence[Size],
    batch_size: int,
    smaller: Sequence[Sequence[Size]] = (),
) -> dict[Shape, np.ndarray | None]:
    """Assign the examples of a source to buckets; see `assign`. Features keep the sizes they were computed at.

    Raises:
      InputError: features were computed at sizes that the stage does not use.
    """
    if hasattr(source, "example"):
        kinds, kind_of = np.unique(source.sizes(), axis=0, return_inverse=True)
        allowed = {size for group in (targets, *smaller) for size in group}
        shapes = [((int(a), int(b)), (int(c), int(d))) for a, b, c, d in kinds]
        for target, content in shapes:
            if target not in allowed or content not in contents:
                raise InputError(
                    f"{source.path} was made for targets of {target} and content of {content} pixels, which this stage"
                    " does not use: set the same target_size, content_size, areas and aspects, or precompute it again."
                )
        return {shape: np.flatnonzero(kind_of.reshape(-1) == number) for number, shape in enumerate(shapes)}
    one = len(targets) == len(contents) == 1 and not smaller
    found = np.zeros((len(source), 4), np.int32) if one else sizes_of(source)
    return assign(found, targets, contents, batch_size, smaller)


def sizes_of(source: TripletSource) -> np.ndarray:
    """Return (height, width) of every target and content image, int32 [n, 4], 0 where absent or unreadable.

    Without a `sizes` method, the whole source is read.
    """
    if hasattr(source, "sizes"):
        return source.sizes()
    size = lambda image: (0, 0) if image is None else image.shape[:2]

    def row(index: int) -> tuple[int, int, int, int]:
        try:
            triplet = source[index]
        except BadExample:
            return 0, 0, 0, 0  # reported when the example is read for a batch
        return *size(triplet.target), *size(triplet.content)

    return np.asarray([row(index) for index in range(len(source))], np.int32)
