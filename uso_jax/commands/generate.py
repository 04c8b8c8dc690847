# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Generate images with USO.

    uso-generate --prompt "a red fox" --image_paths content.png style.png
    uso-generate --eval_json_path items.json --save_path output
    uso-generate --from_image output/0_0_1a2b3c4d5e.png
    uso-generate --prompt "a red fox" --lora my_style.safetensors=0.8 --lora runs/mine
    uso-generate --prompt "a red hat" --image photo.png --mask hat.png --strength 1
    uso-generate --prompt "a harbour" --image_paths "" ink.png felt.png --style_masks left.png right.png

The first of --image_paths is the content image, "" for none. The others are style images, style files, or names of
saved styles (uso-style). Images that exist already are not generated again.
"""

import argparse
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

from uso_jax.commands.adapter_flags import add_adapter_flags, given_adapters
from uso_jax.commands.option_flags import add_option_flags, given_options
from uso_jax.commands.weights_flags import add_products_flag
from uso_jax.common import progress
from uso_jax.common.errors import InputError, exit_cleanly
from uso_jax.images import files
from uso_jax.inference import batch_jobs, records, request
from uso_jax.inference.option_kinds import BOOLEAN
from uso_jax.inference.options import GenerationOptions
from uso_jax.inference.pipeline import USOPipeline
from uso_jax.inference.reporter import Reporter
from uso_jax.parallel import sharding


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    """Generate what the arguments describe. Errors of the user exit with code 2."""
    args = _parser().parse_args(argv)
    items, options = _read(args)
    job = batch_jobs.Job(
        save_path=pathlib.Path(args.save_path),
        options=GenerationOptions(**options),
        num_images_per_prompt=args.num_images_per_prompt,
        concat_refs=args.concat_refs,
        batch_size=args.batch_size,
        process=(args.process_index, args.num_processes),
    )
    if not 0 <= args.process_index < args.num_processes:
        raise InputError(f"--process_index must be from 0 to {args.num_processes - 1}, not {args.process_index}")
    if min(args.num_images_per_prompt, args.batch_size) < 1:
        raise InputError("--num_images_per_prompt and --batch_size must be at least 1")
    job.check(items)
    pipe = USOPipeline.from_weights(
        args.weights,
        dtype=args.dtype,
        mesh=sharding.make_mesh(sharding.read_shape(args.mesh)),
        offload=args.offload,
        tile=args.tile,
        compilation_cache=not args.no_compilation_cache,
        verify=args.verify,
        quantize_activations=args.quantize_activations,
        **given_adapters(args),
    )
    if args.from_image and args.made_with != pipe.context:
        print(
            f"note: {args.from_image} was made with other weights or adapters or another dtype: the image will differ"
        )
    log = logging.getLogger("uso_jax")
    log.handlers = log.handlers or [progress.LogHandler()]  # notes of the pipeline
    total = job.count(len(items))
    images = progress.bar(total=total, desc="image", unit="image", leave=False, disable=total < 2)
    with images as bar, Reporter() as shown:
        for path, made in job.run(pipe, items, shown):
            shown.close()
            progress.say(f"{path}" if made else f"{path}  (was finished)")
            (bar.update if made else bar.skip)()


def _read(args: argparse.Namespace) -> tuple[list[batch_jobs.Item], dict[str, Any]]:
    """Return the items, and the options that they share, by name."""
    given = given_options(args)
    if sum(value is not None for value in (args.prompt, args.eval_json_path, args.from_image)) > 1:
        raise InputError("pass only one of --prompt, --eval_json_path and --from_image")
    names = (*request.IMAGES, "style_masks")
    edited = {name: path for name in names if (path := getattr(args, name))}
    if args.from_image:
        path = pathlib.Path(args.from_image)
        record = files.read_record(path)
        repeated = records.from_record(record, path.parent)
        repeated["images"] = {name: repeated.pop(name) for name in names if name in repeated} | edited
        args.concat_refs = args.concat_refs or bool(record.get("concat_refs"))
        args.made_with = {name: value for name, value in record.get("weights", {}).items() if name != "name"}
        options = repeated.pop("options")
        if "image" in repeated["images"] and (edited or {"outpaint", "width", "height"} & given.keys()):
            options = {name: value for name, value in options.items() if name not in ("width", "height")}
        return [batch_jobs.Item(0, **repeated)], options | given
    if args.eval_json_path:
        if edited:
            raise InputError(f"--{min(edited)} belongs into the items of {args.eval_json_path}, as {min(edited)!r}")
        return batch_jobs.read_items(args.eval_json_path), given
    if args.prompt is None and not args.image_paths and not args.image:
        raise InputError('nothing to generate: pass --prompt "..." or --eval_json_path')
    values = {"prompt": args.prompt or "", "image_paths": args.image_paths, "content_paths": args.content_paths}
    values |= edited
    return [batch_jobs.parse_item(values)], given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    flag = dict(nargs="?", const=True, default=False, type=BOOLEAN.parse, metavar="BOOL")
    add("--weights", default="mini", metavar="DIR", help='weights directory, or "mini" (default: %(default)s)')
    add("--prompt", help='description of the image; "" restyles the content image and keeps its layout')
    add("--image_paths", nargs="*", default=[], metavar="IMAGE", help='content image or "", then styles')
    add("--content_paths", nargs="*", default=[], metavar="IMAGE", help="further content images")
    add("--image", metavar="IMAGE", help="image to edit, in place of noise; see --strength, --mask and --outpaint")
    add("--mask", metavar="IMAGE", help="white where that image is drawn anew; what is black keeps its pixels")
    add("--content_mask", metavar="IMAGE", help="white where the content image counts")
    add("--style_masks", nargs="*", default=[], metavar="IMAGE", help='white where each style counts; "": everywhere')
    add("--eval_json_path", metavar="JSON", help="list of items, each with prompt, image_paths and any option")
    add("--from_image", metavar="PNG", help="repeat an image from its record; other flags change it")
    add("--save_path", default="output/inference", metavar="DIR", help="folder of the images (default: %(default)s)")
    add("--num_images_per_prompt", type=int, default=1, metavar="N", help="images per item, with consecutive seeds")
    add_adapter_flags(parser)
    add_option_flags(parser)
    add("--concat_refs", help="append the references to the image", **flag)
    add("--offload", help="keep networks in host memory while they are not running", **flag)
    add_products_flag(parser)
    add("--tile", type=int, metavar="PIXELS", help="decode larger images in tiles of this size (default: whole)")
    add("--batch_size", type=int, default=1, metavar="N", help="images at once (default: %(default)s)")
    add("--dtype", choices=("float32", "bfloat16"), help="of transformer and text encoders (default: by the weights)")
    add("--verify", action="store_true", help="compare every file of the weights with its SHA-256 before loading them")
    add("--mesh", default="data=-1", help="devices by axis, such as sequence=4 (default: %(default)s)")
    add("--process_index", type=int, default=0, metavar="I", help="index of this process, below --num_processes")
    add("--num_processes", type=int, default=1, metavar="N", help="processes that share the items")
    add("--no_compilation_cache", action="store_true", help="do not keep compiled programs on disk")
    return parser
