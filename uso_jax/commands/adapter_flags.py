# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The flags --lora, --projector and --no_merge of commands that generate images."""

import argparse
from typing import Any

from uso_jax.weights.adapters.sources import parse_adapter


def add_adapter_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags; `given_adapters` reads them."""
    text = "adapter: a safetensors file of any layout, a folder with one, a weights directory or a training's workdir"
    parser.add_argument(
        "--lora", action="append", default=[], metavar="PATH[=STRENGTH]", help=f"{text} (strength 1); may be repeated"
    )
    parser.add_argument("--projector", metavar="PATH", help="style projector in place of the weights' own")
    parser.add_argument("--no_merge", action="store_true", help="keep the weights' own adapters beside the transformer")


def given_adapters(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords of `USOPipeline.from_weights` for the flags."""
    adapters = [parse_adapter(text, "--lora ") for text in args.lora]
    return {"adapters": adapters, "projector": args.projector, "merge": not args.no_merge}
