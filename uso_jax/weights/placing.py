# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From arrays on disk to arrays on devices, each device with its own shard."""

import pathlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from uso_jax.params import Params
from uso_jax.weights import integrity
from uso_jax.weights.lazy_array import LazyArray

_READERS = 4  # threads that read arrays


def place(
    folder: pathlib.Path, wanted: Mapping[str, tuple[LazyArray, jax.ShapeDtypeStruct]], *, check_finite: bool
) -> Params:
    """Load a component's arrays, each with the dtype and sharding of its struct.

    Args:
      folder: DIR/<component>.
      wanted: arrays and structs by path.
      check_finite: refuse numbers that are NaN or infinite.

    Raises:
      InputError: there are such numbers; the message names the parameters.
      OSError, ValueError: a file cannot be read.
    """
    default = jax.config.jax_default_device or jax.local_devices()[0]
    default = jax.local_devices(backend=default)[0] if isinstance(default, str) else default
    placed = {path: s.sharding or jax.sharding.SingleDeviceSharding(default) for path, (_, s) in wanted.items()}

    def read_parts(path: str) -> dict[str, np.ndarray]:
        array, struct = wanted[path]
        indices = placed[path].addressable_devices_indices_map(tuple(array.shape)).values()
        different = {str(index): index for index in indices}  # devices with the same index share one read
        return dict(zip(different, array.parts(different.values(), struct.dtype), strict=True))

    params: Params = {}
    paths, bad = list(wanted), {}
    # Several are read at a time, so that the disk, the casts and the transfers overlap. Only this thread creates
    # arrays: JAX has crashed when another thread collected garbage meanwhile.
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(paths), _READERS):
            few = paths[start : start + _READERS]  # all together may be larger than memory
            for path, parts in zip(few, pool.map(read_parts, few), strict=True):
                if check_finite and (count := sum(map(integrity.count_not_finite, parts.values()))):
                    bad[path] = count
                shape, part = wanted[path][0].shape, lambda index, parts=parts: parts[str(index)]
                params[path] = jax.make_array_from_callback(shape, placed[path], part)
    if bad:
        raise integrity.not_finite(folder, bad)
    return params
