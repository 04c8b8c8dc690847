# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The weights directory: one folder per component, with its parameters and a manifest that describes them.

    DIR/<component>/manifest.json   what it is, its sizes, dtypes and sources
    DIR/<component>/params.safetensors, or several files and an index (uso_jax.weights.safetensors_store)

Paths are stored flat, as the one name a parameter has in rules, shardings and manifests: nesting would have to be
undone on every load, and could not tell a list's "0" from a dict's. Files are read by mapping them, so a device's shard
costs its own bytes, whatever the sharding. A component of manifest format 2 is read too (uso_jax.weights.zarr_reader).

A folder is written under a temporary name, which starts with a dot, and renamed when it is complete
(uso_jax.weights.writer).
"""

import os
import pathlib
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from uso_jax.common import atomic_files
from uso_jax.common.errors import InputError
from uso_jax.models.components import ADAPTERS, row_of
from uso_jax.params import Params
from uso_jax.weights import integrity, quantization, safetensors_store
from uso_jax.weights.manifest_configs import Sections, build
from uso_jax.weights.manifest_text import ZARR_FORMAT, add_hashes, read_manifest
from uso_jax.weights.placing import place
from uso_jax.weights.quantization import InMemory, QuantisedArray
from uso_jax.weights.safetensors_store import open_safetensors
from uso_jax.weights.stored_array import StoredArray
from uso_jax.weights.writer import Writer
from uso_jax.weights.zarr_reader import open_zarr

Path = str | pathlib.Path


# ---------------------------------------------------------------------------------------------------- what it holds


def components(directory: Path) -> list[str]:
    """List the complete components of a weights directory."""
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory} is not a weights directory; make one with: uso-convert import")
    found = (path.parent.name for path in directory.glob("*/manifest.json"))
    return sorted(name for name in found if not name.startswith("."))


def tokenizer(directory: Path, component: str) -> pathlib.Path:
    """Return the folder of a text encoder's tokenizer in a weights directory; it need not exist."""
    return integrity.tokenizer_of(pathlib.Path(directory) / component)


def manifest(directory: Path, component: str) -> dict[str, Any]:
    """Read and check a component's manifest; the values of `tensors` become shape-dtype structs.

    A quantised component has `quantization`: its `mode`, and the shape and dtype of each of its `parameters` before.

    `own_hash` is the manifest's hash as it is, `manifest_sha256` as it was written (uso_jax.weights.integrity).

    Raises:
      InputError: the component is missing, damaged or of another format.
    """
    found = components(directory)
    if component not in found:
        raise InputError(f"{directory} has no {component}, only {', '.join(found) or 'nothing'}; import it first")
    return read_manifest(pathlib.Path(directory), component)


def shapes(directory: Path, component: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shape and dtype of every parameter of a component; for quantised ones, those before quantisation."""
    return _shapes(manifest(directory, component))


def _shapes(record: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    before = record.get("quantization", {}).get("parameters", {})
    scales = {quantization.scale_path(path) for path in before}
    return {path: before.get(path, struct) for path, struct in record["tensors"].items() if path not in scales}


def config(directory: Path, component: str, **changes) -> Any:
    """Return the config of a directory's component, with `changes` such as dtype.

    The transformer's includes whichever adapters the directory has.

    Raises:
      InputError: a component is missing, or was made for a transformer of other sizes.
    """
    sections = {name: dict(values) for name, values in manifest(directory, component)["config"].items()}
    if component == "transformer":
        for part in ADAPTERS:
            if part in components(directory):
                add_sections(sections, manifest(directory, part)["config"], f"{directory}: {part}")
    return build(row_of(component, sections).name, sections, **changes)


def add_sections(sections: dict[str, dict], more: Sections, what: str) -> None:
    """Add an adapter's sizes to a transformer's.

    Raises:
      InputError: a size contradicts the transformer's; the message names the adapter by `what`.
    """
    for section, values in more.items():
        for name, value in values.items():
            if sections.setdefault(section, {}).setdefault(name, value) != value:
                has = sections[section][name]
                raise InputError(
                    f"{what} was made for a transformer with {name} {value}, this one has {has}; take one that fits"
                )


# ---------------------------------------------------------------------------------------------------- storage


def check_writable(directory: Path, component: str, overwrite: bool = False) -> None:
    """Raise InputError, before slow work starts, if a component could not be written or exists already."""
    directory = pathlib.Path(directory)
    try:
        nearest = next(path for path in (directory, *directory.absolute().parents) if path.exists())
        exists = (directory / component).exists()
    except OSError as error:
        raise InputError(f"cannot write weights to {directory}: {error.strerror}; choose another directory") from error
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"cannot write weights to {directory}: {nearest} is not a writable directory")
    if exists and not overwrite:
        raise InputError(f"{directory / component} exists; give --overwrite to replace it, or another directory")


def save(
    directory: Path, component: str, params: Mapping[str, Any], manifest: Mapping, overwrite: bool = False
) -> None:
    """Write a component from arrays in memory. Only one process may write.

    Args:
      directory: made if it does not exist.
      component: the folder's name, such as "transformer".
      params: numpy or fully addressable JAX arrays by path.
      manifest: at least `config` (uso_jax.weights.manifest_configs.describe); optionally `family` and `sources`.
        Entries that follow from the parameters are added.
      overwrite: replace the component if it exists.

    Raises:
      InputError: the component could not be written; an existing one is untouched.
    """
    check_writable(directory, component, overwrite)
    structs = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in params.items()}
    with Writer(directory, component, structs) as writer:
        for path, value in params.items():
            writer.write(path, 0, np.asarray(value))
        writer.finish(manifest)


def read(directory: Path, component: str) -> dict[str, StoredArray | QuantisedArray]:
    """Return a component's parameters as arrays on disk; indexing reads, and dequantises, only the requested part.

    Raises:
      InputError: the component is missing or damaged.
    """
    where = pathlib.Path(directory).absolute() / component
    record = manifest(directory, component)
    integrity.check_files(where, record)
    try:
        tensors = record["tensors"]
        packed = record["format"] > ZARR_FORMAT or (where / safetensors_store.FILE).is_file()
        stored = open_safetensors(where, tensors) if packed else open_zarr(where, tensors)
        if "quantization" in record:
            mode, before = record["quantization"]["mode"], record["quantization"]["parameters"]
            for path, struct in before.items():
                stored[path] = QuantisedArray(stored[path], stored.pop(quantization.scale_path(path)), struct, mode)
        return stored
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{where} cannot be read ({error}); import or copy the {component} again") from error


def verify(directory: Path, names: Collection[str] | None = None) -> list[str]:
    """Compare all bytes of components with their manifests, of all components or of those in `names`.

    Returns:
      the components that have no hashes, because an older program wrote them.

    Raises:
      InputError: a file has other bytes than when it was written; the message names it.
    """
    unknown = []
    for component in components(directory) if names is None else names:
        record = manifest(directory, component)
        integrity.check_files(pathlib.Path(directory) / component, record, whole=True)
        unknown += [] if record["sha256"] else [component]
    return unknown


def record_hashes(directory: Path, component: str, *, tokenizer_only: bool = False) -> None:
    """Write the hashes of a component's files and tokenizer, and of its manifest as it is, into the manifest.

    Raises:
      InputError: the component is damaged, or the manifest cannot be written.
    """
    folder = pathlib.Path(directory) / component
    manifest(directory, component)
    with atomic_files.explained(folder / "manifest.json", "make it writable"):
        add_hashes(folder, tokenizer_only=tokenizer_only)


def load(directory: Path, component: str, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
    """Load a component's parameters onto devices, each with the dtype and sharding of its struct.

    Every device reads only its own shard. A parameter without a sharding goes to the default device. Quantised
    parameters are dequantised shard by shard.

    Raises:
      InputError: the component is missing, damaged or has other shapes.
    """
    _check_shapes(directory, component, shapes)
    arrays = read(directory, component)
    return _place(directory, component, {path: (arrays[path], struct) for path, struct in shapes.items()})


def load_quantized(
    directory: Path,
    component: str,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    mode: str = "",
    *,
    changed: Mapping[str, Any] = MappingProxyType({}),
    paths: Collection[str] | None = None,
) -> Params:
    """Load a component's parameters as `load` does, but keep quantised ones as numbers and scales.

    A quantised "x/kernel" becomes "x/kernel" in int8, float8_e4m3fn or int4, and "x/kernel_scale" in float32 with shape
    [layers,] groups of inputs, outputs. Both have the sharding of the struct; their product is the kernel.

    Args:
      mode: format in which kernels that are stored whole are quantised while loading, one of quantization.FORMATS;
        "" leaves them whole.
      changed: arrays to load in place of stored ones (uso_jax.weights.adapters).
      paths: of the parameters to load; None: all.

    Raises:
      InputError: the component is missing, damaged, has other shapes or is stored in another format.
    """
    _check_shapes(directory, component, shapes)
    wanted: dict[str, tuple[Any, jax.ShapeDtypeStruct]] = {}
    arrays = {**read(directory, component), **changed}
    has = manifest(directory, component).get("quantization", {}).get("mode", mode)
    if mode and has != mode:
        raise InputError(
            f"{pathlib.Path(directory) / component} is stored in {has}, not {mode}: choose {has}, or import it again"
        )
    chosen = quantization.choose(component, shapes) if mode else {}
    for path, struct in shapes.items():
        if paths is not None and path not in paths:
            continue
        array = arrays[path]
        if path in chosen and not isinstance(array, QuantisedArray):
            array = InMemory(array, mode)
        if not isinstance(array, (QuantisedArray, InMemory)):
            wanted[path] = array, struct
            continue
        for name, part, sharding in (
            (path, array.values, struct.sharding),
            (
                quantization.scale_path(path),
                array.scales,
                quantization.scale_sharding(struct.sharding, array.scales.shape),
            ),
        ):
            wanted[name] = part, jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=sharding)
    return _place(directory, component, wanted)


def _check_shapes(directory: Path, component: str, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    where = pathlib.Path(directory).absolute() / component
    stored = _shapes(manifest(directory, component))
    found = {
        "missing": sorted(shapes.keys() - stored.keys()),
        "stray": sorted(stored.keys() - shapes.keys()),
        "of wrong shape": [
            f"{path} is {list(stored[path].shape)}, not {list(struct.shape)}"
            for path, struct in shapes.items()
            if path in stored and stored[path].shape != tuple(struct.shape)
        ],
    }
    if problems := [f"{len(v)} {k} ({', '.join(v[:5])}{', ...' * (len(v) > 5)})" for k, v in found.items() if v]:
        raise InputError(f"{where} does not fit the model: {'; '.join(problems)}; its sizes are in manifest.json")


def _place(directory: Path, component: str, wanted: Mapping[str, tuple[Any, jax.ShapeDtypeStruct]]) -> Params:
    where = pathlib.Path(directory).absolute() / component
    small = sum(manifest(directory, component)["files"].values()) <= integrity.ALWAYS
    try:
        return place(where, wanted, check_finite=small)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{where} cannot be read ({error}); import or copy the {component} again") from error
