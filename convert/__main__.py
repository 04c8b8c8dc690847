# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Bring checkpoints into a weights directory, and back.

    python -m convert import flux1-dev.safetensors dit_lora.safetensors projector.safetensors --to weights
    python -m convert export weights --component lora --to dit_lora.safetensors
    python -m convert inspect dit_lora.safetensors

Files are recognised by their tensors, whatever they are called; several files of one component are its shards.
"""

import argparse
import pathlib
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from convert import safetensors_file
from convert.checkpoint import Checkpoint, read_config, recognise
from convert.families import for_component
from convert.safetensors_file import SafetensorsFile
from convert.table import expand, to_flax
from uso_jax import weights
from uso_jax.errors import InputError, exit_cleanly


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the commands; mistakes of the user end with exit code 2."""
    if argv is None:
        # A command of its own needs no accelerator, and must not take one from a running job.
        jax.config.update("jax_platforms", "cpu")
    args = _parser().parse_args(argv)
    args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="import | export | inspect")

    def command(name: str, run: Callable, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    sizes = "sizes that the tensors do not tell, in sections flux, lora, projector, siglip, autoencoder"
    config = dict(metavar="JSON", help=sizes)
    sub = command("import", import_files, "Read safetensors files into a weights directory.")
    sub.add_argument("files", nargs="+", metavar="FILE")
    sub.add_argument("--to", required=True, metavar="DIR", help="weights directory; made if it does not exist")
    sub.add_argument("--config", **config)
    sub.add_argument("--dtype", choices=("keep", "bfloat16", "float32"), default="keep", help="cast to (default: keep)")
    sub.add_argument("--overwrite", action="store_true", help="replace components that exist")

    sub = command("export", export, "Write one component as a safetensors file with upstream's tensor names.")
    sub.add_argument("directory", metavar="DIR", help="weights directory")
    sub.add_argument("--component", required=True, metavar="NAME", help="such as transformer, lora or projector")
    sub.add_argument("--to", required=True, metavar="FILE", help="the file to write")
    sub.add_argument("--overwrite", action="store_true", help="replace the file if it exists")

    sub = command("inspect", inspect, "Say what files or a weights directory hold, from headers and manifests.")
    sub.add_argument("files", nargs="+", metavar="FILE", help="safetensors files, or one weights directory")
    sub.add_argument("--config", **config)
    return parser


# ---------------------------------------------------------------------------------------------------- import


def import_files(args: argparse.Namespace) -> None:
    """Import files; every header is checked before the first tensor is read."""
    found = _recognise(args)
    for checkpoint in found:
        checkpoint.check()
        weights.check_writable(args.to, checkpoint.family.component, args.overwrite)
    for checkpoint in found:
        family = checkpoint.family
        with _bar(len(checkpoint.entries), family.component) as bar:
            params = to_flax(family.rows, checkpoint.shapes, _tensors(checkpoint, args.dtype, bar))
            bar.set_postfix_str("writing")
            manifest = {
                "family": family.name,
                "prefix": checkpoint.prefix,
                "config": weights.describe(family.component, checkpoint.config),
                "sources": [
                    {"file": file.path.name, "size": file.size, "sha256": file.sha256} for file in checkpoint.files
                ],
            }
            weights.save(args.to, family.component, params, manifest, args.overwrite)
            bar.set_postfix_str("")
        del params  # before the next component is read
        _show_component(args.to, family.component)


def _tensors(checkpoint: Checkpoint, dtype: str, bar: tqdm) -> Iterator[tuple[str, np.ndarray]]:
    dtypes = checkpoint.dtypes()
    for file in checkpoint.files:
        for key, tensor in file:
            entry = checkpoint.entries.get(key.removeprefix(checkpoint.prefix))
            if entry is None:
                continue  # of another network in the same file
            wanted = dtypes[entry.paths[0]] if dtype == "keep" else jnp.dtype(dtype)
            yield key.removeprefix(checkpoint.prefix), tensor.astype(wanted, copy=False)
            bar.update()


# ---------------------------------------------------------------------------------------------------- export


def export(args: argparse.Namespace) -> None:
    """Export a component under the names, and in the layout, that it was imported from."""
    path = pathlib.Path(args.to)
    if path.is_dir():
        raise InputError(f"{path} is a directory; give the name of a file in it")
    if path.exists() and not args.overwrite:
        raise InputError(f"{path} exists; give --overwrite to replace it, or another name")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path.parent} is not a directory; make it first")
    manifest = weights.manifest(args.directory, args.component)
    family = for_component(args.component, manifest["family"])
    shapes = weights.shapes(args.directory, args.component)
    entries = expand(family.rows, shapes)
    # Wide dtypes first, so that every tensor starts at a multiple of its own width.
    order = sorted(entries, key=lambda key: -shapes[entries[key].paths[0]].dtype.itemsize)
    layout = {
        f"{manifest.get('prefix', family.prefixes[0])}{key}": (shapes[entries[key].paths[0]].dtype, entries[key].shape)
        for key in order
    }
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    structs = {k: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=host) for k, s in shapes.items()}
    params = {k: np.asarray(v) for k, v in weights.load(args.directory, args.component, structs).items()}
    with _bar(len(order), args.component) as bar:
        tensors = (bar.update() or entries[key].join(params) for key in order)
        safetensors_file.write(path, layout, tensors, {"format": "pt"})
    print(f"{path}  {len(order):,} tensors  {_size(path.stat().st_size)}  ({family.title})")


# ---------------------------------------------------------------------------------------------------- inspect


def inspect(args: argparse.Namespace) -> None:
    """Describe files or a weights directory."""
    if any(pathlib.Path(file).is_dir() for file in args.files):
        for directory in args.files:
            for component in weights.components(directory):
                _show_component(directory, component)
        return
    for i, checkpoint in enumerate(_recognise(args)):
        print(end="\n" if i else "")
        _show_checkpoint(checkpoint)


def _show_checkpoint(found: Checkpoint) -> None:
    tensors = [tensor for file in found.files for tensor in file.tensors.values()]
    dtypes = sorted({str(tensor.dtype) for tensor in tensors})
    size = sum(file.size for file in found.files)
    print(f"{found.names}  ({_size(size)})")
    sizes = weights.describe(found.family.component, found.config)
    lines = {
        "family": f"{found.family.name}: {found.family.title}",
        "component": found.family.component,
        "tensors": f"{len(tensors):,} {' and '.join(dtypes)}",
        "parameters": f"{sum(struct.size for struct in found.shapes.values()):,}",
    }
    for section, values in sizes.items():
        told = {k: v for k, v in values.items() if f"{section}.{k}" not in found.untold}
        own = section == found.family.component or found.family.component == "transformer"
        lines[section if own else f"needs {section}"] = ", ".join(f"{k} {_plain(v)}" for k, v in told.items())
    if found.untold:
        lines["not told"] = f"{', '.join(found.untold)}; import needs --config"
    if found.ignored:
        lines["ignored"] = f"{found.ignored:,} tensors of other networks"
    lines |= {name: _some(keys) for name, keys in found.problems.items()}
    lines["verdict"] = "does not fit the model" if found.problems else "complete, nothing missing and nothing stray"
    _print_table(lines)


def _show_component(directory: str, component: str) -> None:
    manifest = weights.manifest(directory, component)
    rank = manifest["config"].get("lora", {}).get("rank")
    size = _size(sum(manifest["files"].values()))
    print(
        f"{pathlib.Path(directory) / f'{component:<11}'}  {manifest['parameters']:>14,} parameters"
        f"  {manifest['dtype']:<8}  {size:>8}{f'  rank {rank}' if rank else ''}"
    )


# ---------------------------------------------------------------------------------------------------- helpers


def _recognise(args: argparse.Namespace) -> list[Checkpoint]:
    config = read_config(args.config) if args.config else {}
    return recognise([SafetensorsFile(file) for file in args.files], config)


def _bar(total: int, name: str) -> tqdm:
    shape = "{desc:<12}{percentage:3.0f}% {bar:30} {n_fmt}/{total_fmt} tensors  {elapsed}{postfix}"
    return tqdm(total=total, desc=name, bar_format=shape, leave=False, disable=None, file=sys.stderr)


def _print_table(lines: dict[str, str]) -> None:
    width = max(map(len, lines))
    columns = min(shutil.get_terminal_size().columns, 120)
    for name, value in lines.items():
        indent = " " * (width + 4)
        text = textwrap.wrap(value, columns, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
        print(f"  {name:<{width}}  " + "\n".join(text).lstrip())


def _plain(value) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(str, value))})"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _some(keys: Sequence[str]) -> str:
    return f"{len(keys):,}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"


def _size(size: int) -> str:
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):  # noqa: B007
        if value < 1024:
            break
        value /= 1024
    return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


if __name__ == "__main__":
    main()
