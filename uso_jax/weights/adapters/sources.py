# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Open what a user names as an adapter: a file, a folder, a weights directory or a training's workdir."""

import hashlib
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from uso_jax.common.errors import InputError
from uso_jax.weights import parts, training_runs
from uso_jax.weights.adapters.names import adapter_sizes
from uso_jax.weights.adapters.projector import PREFIX, read_projector
from uso_jax.weights.files.safetensors_file import SafetensorsFile
from uso_jax.weights.files.tensors import File, LazyTensor, Sources, dequantise, merge_sources
from uso_jax.weights.parts import Part
from uso_jax.weights.tables.flux import LORA
from uso_jax.weights.tables.table import expand


@dataclass(frozen=True)
class Source:
    """An opened adapter, of which only headers were read.

    Attributes:
      found: its tensors by key; empty if it has a projector only.
      files: that hold them.
      digest: computes the SHA-256 of the file, or of the numbers of a component.
      projector: a style projector beside it, or None.
      component: it is a run's or a weights directory's `lora`, which takes the place of another directory's.
    """

    found: Sources
    files: Sequence[File]
    digest: Callable[[], str]
    projector: Part | None = None
    component: bool = False


def parse_adapter(text: str, flag: str = "") -> tuple[str, float]:
    """Read PATH or PATH=STRENGTH; a path may have "=" in it. `flag` is put before the text in errors.

    Raises:
      InputError: the path does not exist, or the strength is no number.
    """
    path, sign, number = text.rpartition("=")
    if not sign or pathlib.Path(text).exists():
        path, number = text, "1"
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
    if not math.isfinite(strength):
        raise InputError(f"{flag}{text!r}: the strength must be a number, such as {path}=0.8")
    if not pathlib.Path(path).exists():
        raise InputError(f"{flag}{text!r}: {path} does not exist")
    return path, strength


def open_source(path: str | pathlib.Path) -> Source:
    """Open an adapter.

    Args:
      path: a safetensors file; a folder with one, as exports and hubs have it; a weights directory with a `lora`; or
        a training's --workdir, of which the last checkpoint counts.

    Raises:
      InputError: it is none of these, or is damaged.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        return _of_files([path])
    if training_runs.is_training(path):
        return _of_parts(training_runs.open_training(path, None), f"{path}: the training")
    if any(path.glob("*/manifest.json")):
        return _of_parts(parts.open_directory(path), str(path))
    files = sorted(file for file in path.glob("*.safetensors") if not file.name.startswith("."))
    if not files:
        raise InputError(f"{path} is no weights directory, no workdir of a training, and no folder of safetensors")
    return _of_files(files)


def _of_files(paths: Sequence[pathlib.Path]) -> Source:
    adapters, projectors = [], []
    for path in paths:
        if path.suffix.lower() in (".bin", ".pt", ".pth", ".ckpt"):
            raise InputError(f"{path} is a pickled file; import it with uso-convert import, or take a safetensors file")
        file = SafetensorsFile(path)
        (projectors if any(key.startswith(PREFIX) for key in file.tensors) else adapters).append(file)
    for found, what in ((adapters, "adapters"), (projectors, "projectors")):
        if len(found) > 1:
            names = ", ".join(file.path.name for file in found[:4])
            raise InputError(f"{found[0].path.parent} holds {len(found)} {what} ({names}); name the file of one")
    files = adapters or projectors
    found = dequantise(merge_sources(adapters)[0])[0]
    floating = lambda tensor: jax.numpy.issubdtype(tensor.dtype, jax.numpy.floating)
    bad = [key for key, tensor in found.items() if not floating(tensor) and not key.endswith(".alpha")]
    if bad:
        raise InputError(f"{files[0].path}: tensor {bad[0]} is {found[bad[0]].dtype}, not floating")
    projector = read_projector(projectors[0]) if projectors else None
    return Source(found, adapters, lambda: _file_digest(files[0].path), projector)


def _file_digest(path: pathlib.Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _of_parts(found: Mapping[str, Part], where: str) -> Source:
    lora, projector = found.get("lora"), found.get("projector")
    if lora is None and projector is None:
        raise InputError(f"{where} has no lora and no projector, only {', '.join(sorted(found)) or 'nothing'}")
    own = [part for part in (lora, projector) if part is not None]
    found = _tensors(lora) if lora else {}
    return Source(found, [], lambda: _numbers_digest(own), projector, component=True)


def own_adapters(directory: str | pathlib.Path) -> Sources:
    """Return the adapters that a weights directory has itself, under USO's names.

    Raises:
      InputError: it has no `lora`, or that is damaged.
    """
    return _tensors(parts.open_component(directory, "lora"))


def _tensors(part: Part) -> Sources:
    """Return a component's adapters under USO's names, with their scale in `alpha`."""
    sources: Sources = {}
    sizes = adapter_sizes(part.config["lora"])
    for key, entry in expand(LORA, part.shapes).items():
        scale = sizes[entry.pieces[0].path.rpartition("/up/")[0]].scale if key.endswith(".up.weight") else 1.0
        dtype = np.dtype(part.params[entry.pieces[0].path].dtype)

        def read(start: int = 0, stop: int | None = None, entry=entry) -> np.ndarray:
            return entry.join(part.params)[start:stop]

        sources[key] = LazyTensor(dtype, entry.shape, read, (0, len(sources)))
        if scale != 1:
            alpha = np.float32(scale * entry.shape[1])
            read_alpha = lambda start=0, stop=None, alpha=alpha: alpha
            sources[key.replace(".up.weight", ".alpha")] = LazyTensor(alpha.dtype, (), read_alpha, (0, len(sources)))
    return sources


def _numbers_digest(own: Sequence[Part]) -> str:
    digest = hashlib.sha256()
    for part in own:
        for path, array in sorted(part.params.items()):
            digest.update(f"{path} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8))
    return digest.hexdigest()
