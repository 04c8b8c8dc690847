# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The device mesh and where every parameter lives on it.

Axes: "data" copies the model and splits the batch, "fsdp" splits the batch and the parameters, "sequence" copies the
model and splits the transformer's tokens, "tensor" splits parameters and activations inside a layer.
"""

import math
import re
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uso_jax import params
from uso_jax.common.errors import InputError

AXES = ("data", "fsdp", "sequence", "tensor")
BATCH = P(("data", "fsdp"))


def make_mesh(shape: Mapping[str, int], devices: list | None = None) -> Mesh:
    """Lay out the devices; at most one axis may be -1, which takes what the others leave; one not named has size 1."""
    if devices is None:  # by process, so that each process holds rows of a batch that lie together
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if unknown := shape.keys() - set(AXES):
        raise InputError(f"mesh {dict(shape)}: {min(unknown)!r} is no axis; axes are {', '.join(AXES)}")
    sizes = [shape.get(axis, 1) for axis in AXES]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise InputError(f"mesh {dict(shape)}: sizes are positive, and at most one may be -1 (take the rest)")
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise InputError(f"mesh {dict(shape)} does not divide {len(devices)} devices; correct it")
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def read_shape(text: str) -> dict[str, int]:
    """Read a mesh as it is given on the command line, such as "data=4,tensor=2"."""
    shape = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in AXES or re.fullmatch(r"-?\d+", size) is None:
            raise InputError(f"--mesh {text!r} must look like data=4,tensor=2; axes are {', '.join(AXES)}")
        shape[name] = int(size)
    return shape


def check_heads(mesh: Mesh, num_heads: int) -> None:
    """Refuse a sequence axis that leaves devices without attention heads."""
    ways = mesh.shape["sequence"] * mesh.shape["tensor"]
    if mesh.shape["sequence"] > 1 and num_heads % ways:
        raise InputError(
            f"{num_heads} attention heads do not divide by mesh axes sequence x tensor = {ways}; choose smaller ones"
        )


def shardings(mesh: Mesh, rules: params.Rules, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, NamedSharding]:
    """Give every parameter its place by the first rule that matches its path.

    A rule may match nothing: the same rules serve systems with and without adapters.
    """
    placed = {}
    for path, spec in params.match(rules, shapes, "sharding rules", use_all=False).items():
        shape = shapes[path].shape
        if len(spec) > len(shape):
            raise InputError(f"sharding rules: {path} has shape {list(shape)}, too few dimensions for {tuple(spec)}")
        for size, axis in zip(shape, spec, strict=False):
            axes = axis if isinstance(axis, tuple) else () if axis is None else (axis,)
            if size % (ways := math.prod(mesh.shape[name] for name in axes)):
                raise InputError(
                    f"sharding rules: {path} has shape {list(shape)}, and {size} does not divide by mesh axis"
                    f" {' x '.join(map(repr, axes))} of size {ways}; change the size of {axes[-1]!r}"
                )
        placed[path] = NamedSharding(mesh, P(*spec))
    return placed


def replicated(mesh: Mesh) -> NamedSharding:
    """Give the place of a value that every device holds whole."""
    return NamedSharding(mesh, P())


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """Give which of how many equal parts of every batch this process reads: the rows that its devices hold.

    Processes whose devices hold the same rows, such as those of one tensor axis, read the same part.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    rows: dict[int, set[int]] = {}
    for device, (part,) in NamedSharding(mesh, BATCH).devices_indices_map((ways,)).items():
        rows.setdefault(device.process_index, set()).add(part.start or 0)
    parts = {tuple(sorted(found)) for found in rows.values()}
    size = max(map(len, parts))
    if any(part != tuple(range(part[0] // size * size, part[0] // size * size + size)) for part in parts):
        raise InputError(
            f"mesh {dict(mesh.shape)}: {len(rows)} processes hold unequal parts of a batch; choose sizes of which"
            " data x fsdp is a multiple of the processes, or sequence x tensor of the devices of one"
        )
    return min(rows[jax.process_index()]) // size, ways // size


def global_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Place this process's share of a batch on its devices, as part of the global batch."""
    sharding = NamedSharding(mesh, BATCH)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def whole_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Place a batch that every process has whole on the devices of all of them."""
    sharding = NamedSharding(mesh, BATCH)
    return {k: jax.make_array_from_callback(v.shape, sharding, v.__getitem__) for k, v in batch.items()}
