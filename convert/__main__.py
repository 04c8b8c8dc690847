# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Import checkpoints into a weights directory, and export them again.

    python -m convert download flux-dev uso siglip
    python -m convert import flux1-dev.safetensors dit_lora.safetensors projector.safetensors --to weights
    python -m convert export WORKDIR --format uso --to my_style
    python -m convert merge weights turbo.safetensors=0.8 my_style.safetensors --to merged
    python -m convert inspect dit_lora.safetensors
    python -m convert verify weights

Files are recognised by their tensors, not by their names; several files of one component are its shards.
"""

import argparse
import contextlib
import functools
import logging
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

import jax
import ml_dtypes
import numpy as np

from uso_jax import mini, weights
from uso_jax.common import atomic_files, locks, progress
from uso_jax.common.errors import InputError, exit_cleanly
from uso_jax.models.components import folders
from uso_jax.weights import parts as stored
from uso_jax.weights import quantization, training_runs
from uso_jax.weights.parts import Part

from . import COMMAND, download, exporting, inspecting, merging, publishing, tokenizers
from .exporting import Output
from .files.tensors import open_files
from .importing import import_checkpoint
from .recognition import Checkpoint, read_config, recognise

TOKENIZED = folders(lambda row: row.encodes == "text")
DTYPES: Mapping[str, np.dtype | None] = {
    "keep": None,
    **dict.fromkeys(("bf16", "bfloat16"), np.dtype(ml_dtypes.bfloat16)),
    **dict.fromkeys(("fp16", "float16"), np.dtype(np.float16)),
    **dict.fromkeys(("fp32", "float32"), np.dtype(np.float32)),
}
FORMATS = ("uso", "diffusers", "peft", "comfy", "kohya", "bfl")


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the commands; errors caused by user input exit with code 2."""
    if argv is None:
        # Conversion needs no accelerator and must not take one from a running job.
        jax.config.update("jax_platforms", "cpu")
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports what it reads
    args = _parser().parse_args(argv)
    args.run(args)


def _parser() -> argparse.ArgumentParser:
    description = (__doc__ or "").replace("python -m convert", COMMAND)
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(
        required=True, metavar="import | export | pack | merge | inspect | verify | card | push | download"
    )

    def command(name: str, run: Callable, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    one = dict(metavar="NAME", help="read only this component; clip_model, both towers of CLIP, must be named here")
    config = dict(
        metavar="JSON", help="sizes that tensor shapes do not determine, by section, as in a manifest's config"
    )
    pad = dict(action="store_true", help="pad adapters of mixed ranks to the largest rank with zeros")
    dtype = dict(choices=DTYPES, default="keep", metavar="DTYPE", help="cast to bf16, fp16 or fp32 (default: keep)")

    sub = command("import", import_files, "Read weight files into a weights directory.")
    sub.add_argument("files", nargs="+", metavar="FILE", help="safetensors, an index.json of shards, or .bin/.pth")
    sub.add_argument("--to", required=True, metavar="DIR", help="weights directory; made if it does not exist")
    sub.add_argument("--component", **one)
    sub.add_argument("--config", **config)
    sub.add_argument("--dtype", **dtype)
    sub.add_argument(
        "--quantize", choices=quantization.FORMATS, metavar="MODE", help="quantise large kernels to int8, fp8 or int4"
    )
    sub.add_argument("--pad-ranks", **pad)
    sub.add_argument("--overwrite", action="store_true", help="replace components that exist")

    sub = command("export", export, "Write weights for other programs.")
    sub.add_argument(
        "directory", metavar="DIR", help="weights directory, a training's --workdir, or one checkpoint of it"
    )
    sub.add_argument(
        "--to", required=True, metavar="OUT", help="a .safetensors file, or a folder for files with the usual names"
    )
    sub.add_argument("--format", choices=FORMATS, help="layout (default: the one the component was imported from)")
    sub.add_argument(
        "--component",
        metavar="NAME",
        help="such as lora, projector, transformer, or merged: the transformer with its adapters",
    )
    sub.add_argument("--base", metavar="DIR", help="weights directory with the transformer that a training adapted")
    sub.add_argument("--dtype", **dtype)
    which = sub.add_mutually_exclusive_group()
    which.add_argument(
        "--ema", dest="average", action="store_true", default=None, help="a training's average (default)"
    )
    which.add_argument("--raw", dest="average", action="store_false", help="a training's last parameters instead")
    sub.add_argument("--overwrite", action="store_true", help="replace files that exist")

    sub = command("pack", pack, "Write the components that a run trained as a weights directory.")
    sub.add_argument("directory", metavar="WORKDIR", help="a training's --workdir, or one checkpoint of it")
    sub.add_argument("--to", required=True, metavar="DIR", help="weights directory; made if it does not exist")
    sub.add_argument("--component", metavar="NAME", help="write one component only")
    sub.add_argument("--dtype", **dtype)

    sub = command("merge", merge, "Merge adapters into the transformer of a weights directory.")
    merging.add_arguments(sub, list(DTYPES))

    sub = command("inspect", inspect, "Show what files or a weights directory hold, from headers and manifests.")
    sub.add_argument("files", nargs="+", metavar="FILE", help="weight files, or one weights directory")
    sub.add_argument("--component", **one)
    sub.add_argument("--config", **config)
    sub.add_argument("--pad-ranks", **pad)

    sub = command("verify", verify, "Compare every file of a weights directory with its SHA-256.")
    sub.add_argument("directory", metavar="DIR", help='weights directory, or "mini"')
    sub.add_argument("--component", metavar="NAME", help="verify this component only")
    sub.add_argument(
        "--record",
        action="store_true",
        help="trust the files and the manifest as they are now, and record their hashes",
    )

    sub = command("card", publishing.card, "Write a model card of a training beside its exported files.")
    publishing.add_card_arguments(sub)

    sub = command("push", publishing.push, "Upload exported files and their model card to the hub.")
    publishing.add_push_arguments(sub)

    fetch = functools.partial(download.main, import_files)
    sub = command("download", fetch, "Download public checkpoints, and make a weights directory of them with --to.")
    download.add_arguments(sub)
    return parser


# ---------------------------------------------------------------------------------------------------- import


def import_files(args: argparse.Namespace) -> None:
    """Import files; every header is checked before the first tensor is read."""
    found = _recognise(args)
    for checkpoint in found:
        checkpoint.check()
        weights.check_writable(args.to, checkpoint.family.component, args.overwrite)
    dtype = DTYPES[args.dtype]
    for checkpoint in found:
        component = checkpoint.family.component
        structs = checkpoint.structs(dtype).values()
        size = sum(s.size * s.dtype.itemsize for s in structs)
        with progress.bar(total=size, desc=f"importing the {component}", unit="B", leave=False) as bar:
            warnings = import_checkpoint(checkpoint, args.to, dtype, args.overwrite, bar, args.quantize)
        if args.quantize and not quantization.choose(component, checkpoint.shapes):
            warnings.append(f"the {component} has no kernels to quantise")
        for warning in warnings:
            print(f"warning: {checkpoint.names}: {warning}", file=sys.stderr)
        inspecting.show_component(args.to, component)
        if component in TOKENIZED:
            if folder := tokenizers.copy_tokenizer(component, checkpoint.files[0].path, args.to):
                weights.record_hashes(args.to, component, tokenizer_only=True)
            missing = f"not beside the weights; put its files into {weights.tokenizer(args.to, component)}"
            print(f"  tokenizer   {folder or missing}")


# ---------------------------------------------------------------------------------------------------- export


def export(args: argparse.Namespace) -> None:
    """Export components of a weights directory or of a training."""
    parts = _parts(args)
    outputs = _outputs(args, parts)
    for output in outputs:
        if output.component == "lora" and training_runs.is_training(args.directory):
            output.metadata = publishing.notes(args.directory, parts["lora"])
    target, dtype = pathlib.Path(args.to), DTYPES[args.dtype]
    single = target.suffix == ".safetensors"
    if single and len(outputs) > 1:
        names = " and ".join(output.name for output in outputs)
        raise InputError(f"this writes {names}; give --to a folder, or choose one with --component")
    paths = [target if single else target / output.name for output in outputs]
    texts = [{p.parent / name: text for name, text in o.beside.items()} for p, o in zip(paths, outputs, strict=True)]
    _check_places(target, single, [*paths, *(path for files in texts if not single for path in files)], args.overwrite)
    made = [] if single or target.exists() else [target]
    with contextlib.ExitStack() as stack:
        for path in paths:
            stack.enter_context(locks.hold(path.parent, path.name))
        _write_outputs(target, made, dtype, list(zip(outputs, paths, texts, strict=True)), single)


def _write_outputs(
    target: pathlib.Path,
    made: list[pathlib.Path],
    dtype: np.dtype | None,
    files: list[tuple[Output, pathlib.Path, dict[pathlib.Path, str]]],
    single: bool,
) -> None:
    try:
        for output, path, beside in files:
            size = sum((dtype or own).itemsize * int(np.prod(shape)) for own, shape in output.layout.values())
            with progress.bar(total=size, desc=f"writing {output.name}", unit="B", leave=False) as bar:
                exporting.write_output(output, path, dtype, bar)
            for name, text in beside.items() if not single else ():
                name.write_text(text, encoding="utf-8")
            size = inspecting.format_bytes(path.stat().st_size)
            print(f"{path}  {len(output.layout):,} tensors  {size}  ({output.title})")
    except (InputError, OSError) as error:
        for path in made:
            for file in path.iterdir() if path.is_dir() else ():
                file.unlink()
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot write {target}: {error.strerror}; choose another place with --to") from error


def pack(args: argparse.Namespace) -> None:
    """Write a run's components as a weights directory, taking the average of the parameters if there is one."""
    if not training_runs.is_training(args.directory):
        raise InputError(f"{args.directory} is not a training's --workdir")
    parts = training_runs.open_training(args.directory, None)
    if args.component is not None and args.component not in parts:
        raise InputError(f"{args.directory} did not train {args.component}, only {', '.join(sorted(parts))}")
    if (dtype := DTYPES[args.dtype]) == np.dtype(ml_dtypes.bfloat16):
        raise InputError("packed weights must be fp16 or fp32: choose one with --dtype")
    for component, part in parts.items():
        if args.component in (None, component):
            params = {path: np.asarray(value, dtype or value.dtype) for path, value in part.params.items()}
            weights.save(args.to, component, params, {"config": part.config}, overwrite=True)
            inspecting.show_component(args.to, component)


def _parts(args: argparse.Namespace) -> dict[str, Part]:
    if not pathlib.Path(args.directory).is_dir() or not training_runs.is_training(args.directory):
        if args.average is not None:
            raise InputError(f"{args.directory} is not a training's --workdir; --ema and --raw apply to trainings only")
        return stored.open_directory(args.directory)
    parts = training_runs.open_training(args.directory, args.average)
    if args.base is not None:
        return stored.open_directory(args.base) | parts
    return parts


def _outputs(args: argparse.Namespace, parts: Mapping[str, Part]) -> list[Output]:
    """Choose the outputs: the named component, or the usual ones of the format."""
    component, layout = args.component, args.format
    if component is None:
        if layout is None:
            raise InputError("nothing to export: pass --format, --component or both")
        if layout == "uso":
            if outputs := exporting.uso_outputs(parts):
                return outputs
            raise InputError(f"{args.directory} has neither lora nor projector, only {', '.join(sorted(parts))}")
        component = "merged" if layout == "bfl" and "lora" in parts else "transformer" if layout == "bfl" else "lora"
    needed = ("transformer", "lora") if component == "merged" else (component,)
    for name in needed:
        if name not in parts:
            more = "; pass --base" if name == "transformer" and args.base is None else ""
            raise InputError(f"{args.directory} has no {name}, only {', '.join(sorted(parts)) or 'nothing'}{more}")
    if component in ("merged", "transformer") and (layout or component == "merged"):
        if layout not in (None, "bfl", "diffusers"):
            raise InputError(f"a transformer has no layout {layout!r}; choose bfl or diffusers")
        return [exporting.transformer_output(parts, layout == "diffusers", component == "merged")]
    if layout is None or (layout == "uso" and component in ("lora", "projector")):
        return [exporting.native_output(parts[component], component)]
    if component == "lora" and layout in ("diffusers", "peft", "comfy", "kohya"):
        return [exporting.adapter_output(parts[component], layout)]
    if component == "autoencoder" and layout in ("bfl", "diffusers"):
        return [exporting.autoencoder_output(parts[component], layout == "diffusers")]
    raise InputError(f"{component} has no layout {layout!r}; omit --format to write it as it was imported")


def _check_places(target: pathlib.Path, single: bool, paths: Sequence[pathlib.Path], overwrite: bool) -> None:
    folder = target.absolute().parent if single or not target.is_dir() else target.absolute()
    with atomic_files.explained(target, "choose another place with --to"):
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if single and target.is_dir():
        raise InputError(f"{target} is a directory; give the name of a file in it")
    if not single and target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; give a folder, or a name that ends in .safetensors")
    if not nearest.is_dir():
        raise InputError(f"{folder} cannot be a directory, as {nearest} is a file; move that away and make it first")
    for path in paths:
        with atomic_files.explained(path, "choose another place with --to"):
            if path.exists() and not overwrite:
                raise InputError(f"{path} exists; pass --overwrite to replace it, or another name")
            atomic_files.probe(path)


def merge(args: argparse.Namespace) -> None:
    """Merge adapters into a weights directory."""
    merging.run(args, DTYPES[args.dtype])


# ---------------------------------------------------------------------------------------------------- inspect


def inspect(args: argparse.Namespace) -> None:
    """Describe files or a weights directory."""
    if any(pathlib.Path(file).is_dir() for file in args.files):
        for directory in args.files:
            for component in weights.components(directory):
                inspecting.show_component(directory, component)
        return
    for i, checkpoint in enumerate(_recognise(args)):
        print(end="\n" if i else "")
        inspecting.show_checkpoint(checkpoint)


# ---------------------------------------------------------------------------------------------------- verify


def verify(args: argparse.Namespace) -> None:
    """Compare a directory's files with their hashes, or record these."""
    directory = mini.directory(args.directory)
    names = [args.component] if args.component else weights.components(directory)
    if not names:
        raise InputError(f"{directory} has no components; import them with: {COMMAND} import FILE --to {directory}")
    for component in names:
        if args.record:
            weights.record_hashes(directory, component)
        unknown = weights.verify(directory, [component])
        print(f"{directory / component}  {'sizes only: no hashes on record (--record adds them)' if unknown else 'ok'}")


# ---------------------------------------------------------------------------------------------------- helpers


def _recognise(args: argparse.Namespace) -> list[Checkpoint]:
    config = read_config(args.config) if args.config else {}
    return recognise([open_files([file]) for file in args.files], config, args.pad_ranks, args.component)


if __name__ == "__main__":
    main()
