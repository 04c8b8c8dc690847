# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Serve images over HTTP, in OpenAI's format.

    uso-serve                                       mini weights, on http://127.0.0.1:8000
    uso-serve --weights DIR --host 0.0.0.0 --api_keys keys.txt --warm 1024x1024

Requests: docs/serve.md. It needs: pip install 'uso_jax[serve]'
"""

import argparse
import dataclasses
import pathlib
import re
import signal
import sys
from collections.abc import Sequence

from uso_jax.commands.adapter_flags import add_adapter_flags, given_adapters
from uso_jax.common import extras, untrusted
from uso_jax.common.errors import InputError, exit_cleanly
from uso_jax.service.limits import Limits

_LIMITS = {  # flags and what they bound
    "batch": "images drawn at once, at most",
    "wait": "seconds that an image waits for others to share a batch with",
    "queue": "images that wait, at most",
    "seconds": "from a request to its last image, at most",
    "images": "of one request, at most",
    "references": "content and style images of one request, at most",
    "steps": "sampling steps, at most",
    "pixels": "of an image, at most",
}


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    """Serve until the process is asked to end. Errors of the user exit with code 2."""
    # Also while weights are loaded: as the first process of a container, this one would not end by default.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    args = _parser().parse_args(argv)
    limits = Limits(**{name: getattr(args, name) for name in _LIMITS})
    keys = _keys(args.api_keys)
    sizes = [_size(text) for text in args.warm]
    extras.require("serve")
    from uso_jax.inference.pipeline import USOPipeline
    from uso_jax.parallel import sharding
    from uso_jax.service import server  # slow to import, which --help does not need
    from uso_jax.web.listening import is_local

    if not keys and not is_local(args.host):
        print(f"note: {args.host} can be reached from other machines, and anyone may call: see --api_keys", flush=True)
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
    server.serve(
        pipe,
        limits,
        host=args.host,
        port=args.port,
        allowed_hosts=args.allowed_hosts,
        keys=keys,
        adapters=args.adapters,
        styles=args.style_folder,
        sizes=sizes,
        log_prompts=args.log_prompts,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--weights", default="mini", metavar="DIR", help='weights directory, "mini" or "small" (default: %(default)s)')
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)")
    add("--port", type=int, metavar="N", help="port to listen on (default: the first free one from 8000)")
    names = "further names by which clients may call the server, such as that of a proxy in front of it"
    add("--allowed_hosts", nargs="+", default=(), metavar="NAME", help=names)
    add("--api_keys", type=pathlib.Path, metavar="FILE", help="keys of clients, one a line (default: anyone may call)")
    add("--adapters", type=pathlib.Path, metavar="DIR", help="folder of adapters that requests may name")
    add("--style_folder", type=pathlib.Path, metavar="DIR", help="folder of saved styles (default: the user's)")
    add("--warm", nargs="+", default=(), metavar="WxH", help="sizes whose programs are compiled before the start")
    add("--log_prompts", action="store_true", help="write prompts into the log")
    group = parser.add_argument_group("limits")
    for item in dataclasses.fields(Limits):
        if item.name in _LIMITS:
            more = dict(type=type(item.default), default=item.default, metavar="N")
            group.add_argument(f"--{item.name}", **more, help=f"{_LIMITS[item.name]} (default: %(default)s)")
    add_adapter_flags(parser)
    add("--dtype", choices=("float32", "bfloat16"), help="of transformer and text encoders (default: by the weights)")
    add("--offload", action="store_true", help="keep networks in host memory while they are not running")
    add("--tile", type=int, metavar="PIXELS", help="decode larger images in tiles of this size (default: whole)")
    add("--verify", action="store_true", help="compare every file of the weights with its SHA-256 before loading them")
    add("--mesh", default="data=-1", help="devices by axis, such as sequence=4 (default: %(default)s)")
    return parser


def _keys(path: pathlib.Path | None) -> list[str]:
    if path is None:
        return []
    text = untrusted.text(path, missing=f"{path} does not exist; check --api_keys")
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if not keys or any(len(key) < 16 or not key.isascii() for key in keys):
        raise InputError(f"{path} must hold keys of at least 16 ASCII characters, one a line")
    return keys


def _size(text: str) -> tuple[int, int]:
    if not (found := re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)):
        raise InputError(f"--warm {text} must be a size such as 1024x1024")
    return int(found[1]), int(found[2])
