# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The device mesh and the sharding of every parameter.

Axes: "data" copies the model and splits the batch, "fsdp" splits the batch and the parameters, "sequence" copies the
model and splits the transformer's tokens, "tensor" splits parameters and activations inside a layer.

Rules are ordered pairs (regex over parameter paths, mesh axes of each dimension); the first match wins and `()`
replicates. The networks' own rules are in `uso_jax.models.components`. A parameter without a rule is an error, so
nothing is replicated by accident.
"""

import math
import re
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uso_jax import params
from uso_jax.common.errors import InputError

AXES = ("data", "fsdp", "sequence", "tensor")
BATCH = P(("data", "fsdp"))


def make_mesh(shape: Mapping[str, int], devices: list | None = None) -> Mesh:
    """Arrange devices in a mesh. One axis may be -1 to take the remaining devices; axes not named have size 1."""
    if devices is None:  # sorted by process, so that each process holds adjacent rows of a batch
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
    """Parse a mesh from the command line, such as "data=4,tensor=2"."""
    shape = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in AXES or re.fullmatch(r"-?\d+", size) is None:
            raise InputError(f"--mesh {text!r} must look like data=4,tensor=2; axes are {', '.join(AXES)}")
        shape[name] = int(size)
    return shape


def check_heads(mesh: Mesh, num_heads: int) -> None:
    """Raise InputError if the sequence axis leaves devices without attention heads."""
    head_shards = mesh.shape["sequence"] * mesh.shape["tensor"]
    if mesh.shape["sequence"] > 1 and num_heads % head_shards:
        raise InputError(
            f"{num_heads} attention heads do not divide by mesh axes sequence x tensor = {head_shards}; choose smaller"
            " axes"
        )


def shardings(mesh: Mesh, rules: params.Rules, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, NamedSharding]:
    """Return every parameter's sharding by the first rule that matches its path.

    A rule may match nothing: the same rules serve models with and without adapters.

    Raises:
      InputError: a parameter has no rule, or a dimension does not divide by its mesh axes.
    """
    placed = {}
    for path, spec in params.match(rules, shapes, "sharding rules", use_all=False).items():
        shape = shapes[path].shape
        if len(spec) > len(shape):
            raise InputError(f"sharding rules: {path} has shape {list(shape)}, too few dimensions for {tuple(spec)}")
        for size, axis in zip(shape, spec, strict=False):
            axes = axis if isinstance(axis, tuple) else () if axis is None else (axis,)
            if unknown := set(axes) - set(AXES):
                raise InputError(
                    f"sharding rules: {path}: {min(unknown)!r} is no mesh axis; axes are {', '.join(AXES)}"
                )
            if size % (shards := math.prod(mesh.shape[name] for name in axes)):
                raise InputError(
                    f"sharding rules: {path} has shape {list(shape)}, and {size} does not divide by mesh axis"
                    f" {' x '.join(map(repr, axes))} of size {shards}; change the size of {axes[-1]!r}"
                )
        placed[path] = NamedSharding(mesh, P(*spec))
    return placed


def describe_placement(mesh: Mesh, rules: params.Rules, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[str]:
    """Yield a line per parameter: path, shape, mesh axes, share of one device, and the rule that decided."""
    labelled = tuple((regex, (regex, axes)) for regex, axes in rules)
    matched = params.match(labelled, shapes, "sharding rules", use_all=False)
    placed = shardings(mesh, rules, shapes)
    for path, (regex, axes) in matched.items():
        shape = shapes[path].shape
        share = math.prod(placed[path].shard_shape(shape)) / max(math.prod(shape), 1)
        where = ", ".join("-" if a is None else "+".join(a) if isinstance(a, tuple) else a for a in axes)
        yield f"{path} {list(shape)}: {where or 'replicated'}, {share:.3g} per device, by {regex}"


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a value that every device holds whole."""
    return NamedSharding(mesh, P())


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """Return (index, count): which of how many equal parts of every batch this process reads.

    It reads the rows that its devices hold. Processes whose devices hold the same rows, such as those along a tensor
    axis, read the same part.
    """
    data_shards = mesh.shape["data"] * mesh.shape["fsdp"]
    rows: dict[int, set[int]] = {}
    for device, (part,) in NamedSharding(mesh, BATCH).devices_indices_map((data_shards,)).items():
        rows.setdefault(device.process_index, set()).add(part.start or 0)
    parts = {tuple(sorted(found)) for found in rows.values()}
    size = max(map(len, parts))
    if any(part != tuple(range(part[0] // size * size, part[0] // size * size + size)) for part in parts):
        raise InputError(
            f"mesh {dict(mesh.shape)}: {len(rows)} processes hold unequal parts of a batch; choose sizes of which"
            " data x fsdp is a multiple of the processes, or sequence x tensor of the devices of one"
        )
    return min(rows[jax.process_index()]) // size, data_shards // size


def global_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Place this process's part of a batch on its devices, as part of the global batch."""
    sharding = NamedSharding(mesh, BATCH)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def whole_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Place a batch that every process holds whole on the devices of all processes."""
    sharding = NamedSharding(mesh, BATCH)
    return {k: jax.make_array_from_callback(v.shape, sharding, v.__getitem__) for k, v in batch.items()}
