# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Save styles as files and use them by name.

    uso-style encode ink1.png ink2.png --out ink
    uso-style mix ink=0.7 felt=0.3 --out inky_felt
    uso-style list

--out is a name in the style library, or a path that ends in .safetensors. A style encoded from several images has the
tokens of each. A mix is the weighted mean of features and has the tokens of one image.
"""

import argparse
import pathlib
from collections.abc import Sequence

from uso_jax.commands.option_flags import add_option_flags, given_options
from uso_jax.common import atomic_files, progress
from uso_jax.common.errors import InputError, exit_cleanly
from uso_jax.inference import styles as style_files


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the commands. Errors of the user exit with code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="encode | mix | list")
    encode = commands.add_parser("encode", help="encode style images to a style file")
    encode.add_argument("images", nargs="+", metavar="IMAGE", help="style images; the style has the tokens of each")
    encode.add_argument(
        "--weights", default="mini", metavar="DIR", help='weights directory, or "mini" (default: %(default)s)'
    )
    encode.add_argument(
        "--verify", action="store_true", help="compare every file of the weights with its SHA-256 before loading them"
    )
    add_option_flags(encode, ["style_fit", "reference_mode"])
    encode.set_defaults(run=_encode)
    mix = commands.add_parser("mix", help="mix several styles into one")
    mix.add_argument("styles", nargs="+", metavar="STYLE=WEIGHT", help="names or files, each with its share")
    mix.set_defaults(run=_mix)
    for command in (encode, mix):
        command.add_argument("--out", required=True, metavar="NAME", help="name, or path that ends in .safetensors")
    commands.add_parser("list", help="list the style library").set_defaults(run=_list)
    args = parser.parse_args(argv)
    args.run(args)


def _encode(args: argparse.Namespace) -> None:
    from uso_jax.inference.pipeline import USOPipeline  # the other commands need no devices

    _probe(args.out)
    pipe = USOPipeline.from_weights(args.weights, only=["siglip"], verify=args.verify)
    with progress.phase("encoding the style"):
        style = pipe.encode_style(args.images, **given_options(args))
    _print(style_files.write_style(args.out, style))


def _probe(name: str) -> None:
    path = style_files.style_path(name)
    with atomic_files.explained(f"style {path}", "choose another --out"):
        atomic_files.probe(path)


def _mix(args: argparse.Namespace) -> None:
    _probe(args.out)
    styles, weights = [], []
    for text in args.styles:
        name, _, weight = text.rpartition("=")
        try:
            weights.append(float(weight))
        except ValueError:
            raise InputError(f"{text!r} must be STYLE=WEIGHT, such as ink=0.7") from None
        styles.append(style_files.read_style(name))
    _print(style_files.write_style(args.out, style_files.mix_styles(styles, weights)))


def _list(args: argparse.Namespace) -> None:
    for path in style_files.saved_styles():
        _print(path)


def _print(path: pathlib.Path) -> None:
    style = style_files.read_style(path)
    print(f"{path}  {len(style.features)} image(s), {path.stat().st_size / 2**20:.1f} MiB")
