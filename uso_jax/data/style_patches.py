# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Whose style a picture has, where nothing tells its subject and pose: by its patches, without any learned network.

A picture has the style among whose drawings its patches have the nearest neighbours, whatever these show.

Shapes: n pictures of a set, k sets, h w pixels, m patches, d numbers.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64, UInt8

_PATCH, _STRIDE = 5, 2


def distances(
    picture: UInt8[np.ndarray, "h w 3"], sets: Sequence[UInt8[np.ndarray, "n h w 3"]]
) -> Float64[np.ndarray, " k"]:
    """Give, for each set, the mean squared distance of a picture's patches to the nearest patch in the set."""
    own = _patches(picture[None])
    return np.array([_distance(own, _patches(pictures)) for pictures in sets])


def _patches(pictures: UInt8[np.ndarray, "n h w 3"]) -> Float32[np.ndarray, "m d"]:
    windows = np.lib.stride_tricks.sliding_window_view(pictures, (_PATCH, _PATCH), axis=(1, 2))
    return windows[:, ::_STRIDE, ::_STRIDE].reshape(-1, 3 * _PATCH * _PATCH).astype(np.float32) / 255


def _distance(own: Float32[np.ndarray, "m d"], other: Float32[np.ndarray, "j d"]) -> float:
    squares = (own**2).sum(1)[:, None] + (other**2).sum(1)[None] - 2 * own @ other.T
    return float(np.maximum(squares.min(1), 0).mean())
