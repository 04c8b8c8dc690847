# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Generate images with USO in a browser.

    uso-app                                   mini weights, on http://127.0.0.1:7860
    uso-app --weights DIR --host 0.0.0.0      reachable from other machines: everyone who reaches it can generate

It needs gradio: pip install 'uso_jax[app]'
"""

import argparse
import pathlib
from collections.abc import Sequence

from uso_jax.commands.adapter_flags import add_adapter_flags, given_adapters
from uso_jax.common import extras
from uso_jax.common.errors import InputError, exit_cleanly


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until it is interrupted. Errors of the user exit with code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--weights", default="mini", metavar="DIR", help='weights directory, "mini" or "small" (default: %(default)s)')
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)")
    add("--port", type=int, metavar="N", help="port to listen on (default: the first free one from 7860)")
    add(
        "--style_folder",
        type=pathlib.Path,
        metavar="DIR",
        help="folder of saved styles (default: the user's style library)",
    )
    add(
        "--allowed_hosts",
        nargs="+",
        default=(),
        metavar="NAME",
        help="further names by which browsers may call the server, such as that of a proxy in front of it",
    )
    add(
        "--upload_quota",
        type=int,
        metavar="MB",
        help="megabytes that one client may upload in two hours (default: 500)",
    )
    add_adapter_flags(parser)
    add("--dtype", choices=("float32", "bfloat16"), help="of transformer and text encoders (default: by the weights)")
    add("--offload", action="store_true", help="keep networks in host memory while they are not running")
    add("--tile", type=int, metavar="PIXELS", help="decode larger images in tiles of this size (default: whole)")
    add("--verify", action="store_true", help="compare every file of the weights with its SHA-256 before loading them")
    add("--mesh", default="data=-1", help="devices by axis, such as sequence=4 (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.upload_quota is not None and args.upload_quota < 1:
        raise InputError(f"--upload_quota {args.upload_quota} must be at least 1 MB")

    extras.require("app")
    from uso_jax.app import server  # slow to import, which --help does not need
    from uso_jax.inference.pipeline import USOPipeline
    from uso_jax.parallel import sharding

    mesh = sharding.make_mesh(sharding.read_shape(args.mesh))
    print(f"Loading {args.weights} ...", flush=True)
    pipe = USOPipeline.from_weights(
        args.weights,
        dtype=args.dtype,
        mesh=mesh,
        offload=args.offload,
        tile=args.tile,
        verify=args.verify,
        **given_adapters(args),
    )
    more = {} if args.upload_quota is None else {"upload_quota": args.upload_quota}
    server.serve(
        pipe,
        host=args.host,
        port=args.port,
        style_folder=args.style_folder,
        allowed_hosts=args.allowed_hosts,
        **more,
    )
