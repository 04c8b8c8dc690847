# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The flags of servers that say which weights are loaded, and how."""

import argparse
from typing import TYPE_CHECKING

from uso_jax.commands.adapter_flags import add_adapter_flags, given_adapters

if TYPE_CHECKING:
    from uso_jax.inference.pipeline import USOPipeline


def add_weights_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags; `load_weights` reads them."""
    add = parser.add_argument
    add("--weights", default="mini", metavar="DIR", help='weights directory, or "mini" (default: %(default)s)')
    add_adapter_flags(parser)
    add("--dtype", choices=("float32", "bfloat16"), help="of transformer and text encoders (default: by the weights)")
    add("--offload", action="store_true", help="keep networks in host memory while they are not running")
    add_products_flag(parser)
    add("--tile", type=int, metavar="PIXELS", help="decode larger images in tiles of this size (default: whole)")
    add("--verify", action="store_true", help="compare every file of the weights with its SHA-256 before loading them")
    add("--mesh", default="data=-1", help="devices by axis, such as sequence=4 (default: %(default)s)")


def add_products_flag(parser: argparse.ArgumentParser) -> None:
    """Add --quantize_activations."""
    text = "multiply in the 8 bits of a transformer in int8 or fp8: faster where the chip does, less exact"
    parser.add_argument("--quantize_activations", action="store_true", help=text)


def load_weights(args: argparse.Namespace) -> "USOPipeline":
    """Load the weights, and say so."""
    from uso_jax.inference.pipeline import USOPipeline  # slow to import, which --help does not need
    from uso_jax.parallel import sharding

    mesh = sharding.make_mesh(sharding.read_shape(args.mesh))
    print(f"Loading {args.weights} ...", flush=True)
    return USOPipeline.from_weights(
        args.weights,
        dtype=args.dtype,
        mesh=mesh,
        offload=args.offload,
        tile=args.tile,
        verify=args.verify,
        quantize_activations=args.quantize_activations,
        **given_adapters(args),
    )
