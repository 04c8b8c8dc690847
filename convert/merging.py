# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Merge adapters into the transformer of a weights directory, a few layers at a time."""

import argparse
import math
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from uso_jax import mini, weights
from uso_jax.common import atomic_files, progress
from uso_jax.common.errors import InputError
from uso_jax.weights import manifest_configs, quantization
from uso_jax.weights.adapters.adapted import Adapted
from uso_jax.weights.adapters.adapter import Adapter, Strength, open_adapters
from uso_jax.weights.adapters.sources import parse_adapter
from uso_jax.weights.writer import Writer

from . import inspecting
from .importing import layers_together, quantised_facts


def add_arguments(sub: argparse.ArgumentParser, dtypes: Sequence[str]) -> None:
    """Add the command's arguments."""
    sub.add_argument("directory", metavar="BASE", help="weights directory with an unquantised transformer")
    sub.add_argument(
        "adapters",
        nargs="+",
        metavar="ADAPTER[=STRENGTH]",
        help="safetensors file of any layout, folder with one, weights directory, or a training's workdir (strength 1)",
    )
    sub.add_argument("--to", required=True, metavar="DIR", help="weights directory; made if it does not exist")
    sub.add_argument("--dtype", choices=dtypes, default="keep", metavar="DTYPE", help="cast to bf16, fp16 or fp32")
    sub.add_argument("--quantize", choices=quantization.FORMATS, metavar="MODE", help="quantise after merging")
    sub.add_argument("--overwrite", action="store_true", help="replace components that exist")


def merge(
    directory: str | pathlib.Path,
    wanted: Sequence[tuple[str, Strength]],
    target: str | pathlib.Path,
    *,
    dtype: np.dtype | None = None,
    mode: str | None = None,
    overwrite: bool = False,
) -> list[Adapter]:
    """Write a weights directory whose transformer has adapters merged into it, and whose other components are BASE's.

    The sums are computed in float32 and rounded once; of BASE, a few layers of one parameter are in memory.

    Args:
      directory: the base.
      wanted: paths of adapters and their strengths.
      target: the new directory.
      dtype: of the transformer; None: that of the base.
      mode: format in which large kernels are quantised after merging; None: not at all.
      overwrite: replace components that exist.

    Returns:
      the adapters.

    Raises:
      InputError: an adapter does not fit, the base is quantised, or the target cannot be written.
    """
    base, target = mini.directory(directory), pathlib.Path(target)
    record = weights.manifest(base, "transformer")
    if "quantization" in record:
        raise InputError(
            f"{base} is quantised ({record['quantization']['mode']}): merging would lose what quantising has left out;"
            " merge into the unquantised weights and pass --quantize"
        )
    if target.exists() and target.resolve() == base.resolve():
        raise InputError(f"--to {target} is the base itself; choose another directory")
    adapters = open_adapters(base, wanted)
    for component in weights.components(base):
        weights.check_writable(target, component, overwrite)
    adapted = Adapted(base, adapters)
    arrays = {**weights.read(base, "transformer"), **adapted.arrays()["transformer"]}
    structs = {path: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype) for path, x in arrays.items()}
    chosen = quantization.choose("transformer", structs) if mode else {}
    stored = dict(structs)
    for path, struct in chosen.items():
        stored |= quantization.stored(path, struct, mode)
    total = sum(s.size * s.dtype.itemsize for s in structs.values())
    _add_others(base, target, adapted)
    with (  # last: a directory without a transformer is not complete
        progress.bar(total=total, desc="merging", unit="B", leave=False) as bar,
        Writer(target, "transformer", stored) as writer,
    ):
        for path, struct in structs.items():
            size = math.prod(struct.shape[1:]) * struct.dtype.itemsize
            rows = struct.shape[0] if len(struct.shape) < 3 else layers_together(struct.shape, struct.dtype.itemsize)
            for first in range(0, struct.shape[0], rows):
                index = (slice(first, first + rows), *(slice(None),) * (len(struct.shape) - 1))
                # Quantised from the sums in float32.
                chunk = arrays[path].part(index, np.dtype(np.float32) if path in chosen else struct.dtype)
                if path in chosen:
                    chunk, scales = quantization.quantise(chunk, mode)
                    writer.write(quantization.scale_path(path), first, scales)
                writer.write(path, first, chunk)
                bar.update(rows * size)
        writer.finish(_manifest(record, structs, chosen, mode, adapters))
    return adapters


def _manifest(
    record: Mapping[str, Any],
    structs: Mapping[str, jax.ShapeDtypeStruct],
    chosen: Mapping[str, jax.ShapeDtypeStruct],
    mode: str | None,
    adapters: Sequence[Adapter],
) -> dict[str, Any]:
    merged = [{"file": pathlib.Path(one.path).name, "sha256": one.sha256, "strength": one.strength} for one in adapters]
    manifest = {
        "family": record["family"],
        "config": record["config"],
        "sources": [*record.get("sources", []), *merged],
    }
    if "prefix" in record:
        manifest["prefix"] = record["prefix"]
    return manifest | quantised_facts(structs, chosen, mode)


def _add_others(base: pathlib.Path, target: pathlib.Path, adapted: Adapted) -> None:
    """Copy what is not merged: other components, tokenizers and defaults; or write the adapters' projector."""
    with atomic_files.explained(target, "choose another place with --to"):
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(base.iterdir()):
            if (
                path.name.startswith(".")
                or path.name == "transformer"
                or (path.name == "projector" and adapted.projector)
            ):
                continue
            place, hidden = target / path.name, target / f".{path.name}.copy"
            if path.name == "pipeline.json":
                shutil.copyfile(path, place)
            elif path.is_dir():
                shutil.rmtree(hidden, ignore_errors=True)
                shutil.copytree(path, hidden)
                shutil.rmtree(place, ignore_errors=True)
                hidden.rename(place)
    if adapted.projector is not None:
        config = adapted.config(weights.config(base, "transformer"))
        manifest = {"config": manifest_configs.describe("projector", config), "family": "uso-projector"}
        weights.save(target, "projector", adapted.projector.params, manifest, overwrite=True)


def run(args: argparse.Namespace, dtype: np.dtype | None) -> None:
    """Merge and show what was written."""
    wanted = [parse_adapter(text) for text in args.adapters]
    adapters = merge(args.directory, wanted, args.to, dtype=dtype, mode=args.quantize, overwrite=args.overwrite)
    for adapter in adapters:
        for note in adapter.notes:
            print(f"note: {note}")
        print(f"{adapter.path}  strength {adapter.strength:g}, {len(adapter.changes):,} tensors changed")
    for component in weights.components(args.to):
        inspecting.show_component(args.to, component)
