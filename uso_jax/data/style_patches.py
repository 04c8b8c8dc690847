# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Whose style a picture has, where nothing tells its subject and pose: by its patches, without any learned network.

A picture has the style among whose drawings its patches have the nearest neighbours, whatever these show.

Shapes: n pictures of a set, k sets, h w pixels, m patches, d numbers.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64, UInt8

_PATCH = 5


def distances(
    picture: UInt8[np.ndarray, "h w 3"], sets: Sequence[UInt8[np.ndarray, "n h w 3"]]
) -> Float64[np.ndarray, " k"]:
    """Give, for each set, the mean squared distance of a picture's patches to the nearest patch in the set."""
    stride = max(2, picture.shape[0] // 16)  # or twice the side would cost sixteen times as much
    own = _patches(picture[None], stride)
    return np.array([_distance(own, _patches(pictures, stride)) for pictures in sets])


def _patches(pictures: UInt8[np.ndarray, "n h w 3"], stride: int) -> Float32[np.ndarray, "m d"]:
    windows = np.lib.stride_tricks.sliding_window_view(pictures, (_PATCH, _PATCH), axis=(1, 2))
    return windows[:, ::stride, ::stride].reshape(-1, 3 * _PATCH * _PATCH).astype(np.float32) / 255


def _distance(own: Float32[np.ndarray, "m d"], other: Float32[np.ndarray, "j d"]) -> float:
    nearest = ((other**2).sum(1) - own @ (2 * other).T).min(1) + (own**2).sum(1)
    return float(np.maximum(nearest, 0).mean())
