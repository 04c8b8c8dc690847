# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Draw images with USO.

    python scripts/generate.py --prompt "a red fox" --image_paths content.png style.png
    python scripts/generate.py --eval_json_path items.json --save_path output
    python scripts/generate.py --from_image output/0_0_1a2b3c4d5e.png

The first of --image_paths is the content image, "" for none; the others are style images, style files, or names of
styles (scripts/style.py). Images that exist already are not made again.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import get_args

from tqdm import tqdm

from uso_jax import flow
from uso_jax.common.errors import InputError, exit_cleanly
from uso_jax.images import files
from uso_jax.inference import batch_jobs, request
from uso_jax.inference.pipeline import USOPipeline
from uso_jax.parallel import sharding

# What a record holds too, so that a flag that is given changes what --from_image repeats.
_SETTINGS = (
    "width", "height", "num_steps", "guidance", "seed", "pe", "content_ref", "shift", "style_fit", "style_strength",
    "content_strength",
)  # fmt: skip


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the arguments say; mistakes of the user end with exit code 2."""
    args = _parser().parse_args(argv)
    settings = {name: value for name in _SETTINGS if (value := getattr(args, name)) is not None}
    if args.instruct_edit:
        settings["keep_size"] = True
    wanted, settings = _wanted(args, settings)
    if not 0 <= args.process_index < args.num_processes:
        raise InputError(f"--process_index must lie from 0 to {args.num_processes - 1}")
    if min(args.num_images_per_prompt, args.batch_size) < 1:
        raise InputError("--num_images_per_prompt and --batch_size must be at least 1")
    print(f"Loading {args.weights} ...", flush=True)
    pipe = USOPipeline.from_weights(
        args.weights,
        dtype=args.dtype,
        mesh=sharding.make_mesh(sharding.read_shape(args.mesh)),
        offload=args.offload,
        tile=args.tile,
        compilation_cache=not args.no_compilation_cache,
    )
    if args.from_image and args.made_with != pipe.context:
        print(f"note: {args.from_image} was made with other weights or another dtype, so the image will differ")
    job = batch_jobs.Job(
        save_path=pathlib.Path(args.save_path),
        settings=settings,
        num_images_per_prompt=args.num_images_per_prompt,
        concat_refs=args.concat_refs,
        batch_size=args.batch_size,
        process=(args.process_index, args.num_processes),
    )
    with _Bar() as bar:
        for path, made in job.run(pipe, wanted, bar):
            bar.write(f"{path}" if made else f"{path}  (was finished)")


def _wanted(args: argparse.Namespace, settings: dict) -> tuple[list[batch_jobs.Item], dict]:
    """Give the items, and the settings that they share."""
    if sum(value is not None for value in (args.prompt, args.eval_json_path, args.from_image)) > 1:
        raise InputError("give one of --prompt, --eval_json_path and --from_image")
    if args.from_image:
        path = pathlib.Path(args.from_image)
        record = files.read_record(path)
        repeated = request.from_record(record, path.parent)
        args.concat_refs = args.concat_refs or bool(record.get("concat_refs"))
        args.made_with = {name: value for name, value in record.get("weights", {}).items() if name != "name"}
        own = {name: repeated.pop(name, None) for name in ("prompt", "contents", "styles")}
        return [batch_jobs.Item(0, own)], repeated | settings
    if args.eval_json_path:
        return batch_jobs.read(args.eval_json_path), settings
    if args.prompt is None and not args.image_paths:
        raise InputError('there is nothing to draw: give --prompt "..." or --eval_json_path')
    values = {"prompt": args.prompt or "", "image_paths": args.image_paths, "content_paths": args.content_paths}
    return [batch_jobs.item(values)], settings


class _Bar:
    """A bar on stderr that counts steps and shows seconds a step, without the time that compilation takes."""

    def __enter__(self) -> "_Bar":
        layout = "{desc}: {n_fmt}/{total_fmt} steps |{bar}| {rate_inv_fmt}"
        self.bar = tqdm(desc="Loading", unit="step", bar_format=layout, dynamic_ncols=True, leave=False)
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def __call__(self, what: str, step: int, total: int) -> None:
        if step == 0:
            self.bar.reset(total)
        self.bar.set_description_str(what, refresh=False)
        self.bar.n = step
        self.bar.refresh()

    def write(self, text: str) -> None:
        self.bar.clear()
        tqdm.write(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    flag = dict(nargs="?", const=True, default=False, type=_truth, metavar="BOOL")
    add("--weights", default="mini", metavar="DIR", help='weights directory, "mini" (default) or "small"')
    add("--prompt", help='what to draw; "" restyles the content image and keeps its layout')
    add("--image_paths", nargs="*", default=[], metavar="IMAGE", help='content image or "", then styles')
    add("--content_paths", nargs="*", default=[], metavar="IMAGE", help="further content images")
    add("--eval_json_path", metavar="JSON", help="a list of items, each with prompt and image_paths")
    add("--from_image", metavar="PNG", help="repeat an image from its record; further flags change it")
    add("--save_path", default="output/inference", metavar="DIR", help="where images go (default: %(default)s)")
    add("--num_images_per_prompt", type=int, default=1, metavar="N", help="images an item, with seeds one apart")
    add("--width", type=int)
    add("--height", type=int)
    add("--num_steps", type=int)
    add("--guidance", type=float)
    add("--seed", type=int, help="of the first image (default: 3407)")
    add("--pe", choices=get_args(flow.OffsetMode), help="where content tokens lie (default: d)")
    add("--content_ref", type=int, help="long side of the content image")
    add("--instruct_edit", help="take the content image's shape", **flag)
    add("--concat_refs", help="put the references beside the image", **flag)
    add("--offload", help="keep networks in the host's memory while they do nothing", **flag)
    add("--tile", type=int, metavar="PIXELS", help="decode larger images in tiles of this size (default: whole)")
    add("--shift", choices=get_args(flow.Shift), help='of the schedule; "flux" as ComfyUI (default: upstream)')
    add("--style_fit", choices=request.StyleFit, help='"crop" as ComfyUI (default: squash)')
    add("--style_strength", type=float, nargs="+", metavar="S", help="weight of the styles, one or one a style (1)")
    add("--content_strength", type=float, metavar="S", help="weight of the content images (1)")
    add("--batch_size", type=int, default=1, metavar="N", help="images at once (default: 1)")
    add("--dtype", choices=("float32", "bfloat16"), help="of transformer and text (default: as the weights)")
    add("--mesh", default="data=-1", help="devices by axis, such as sequence=4 (default: %(default)s)")
    add("--process_index", type=int, default=0, metavar="I", help="which of --num_processes this is, from 0")
    add("--num_processes", type=int, default=1, metavar="N", help="processes that share the items")
    add("--no_compilation_cache", action="store_true", help="keep no compiled programs on disk")
    return parser


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in ("true", "1")
