# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Serve images over HTTP, in OpenAI's format.

    uso-serve                                       mini weights, on http://127.0.0.1:8000
    uso-serve --weights DIR --host 0.0.0.0 --api_keys keys.txt --warm 1024x1024

Requests: docs/serve.md. It needs: pip install 'uso_jax[serve]'
"""

import argparse
import pathlib
import signal
import sys
from collections.abc import Sequence

from uso_jax.commands.weights_flags import add_weights_flags, load_weights
from uso_jax.common import extras, untrusted
from uso_jax.common.errors import InputError, exit_cleanly
from uso_jax.service.limits import BOUNDS, Limits, read_size


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    """Serve until the process is asked to end. Errors of the user exit with code 2."""
    # Also while weights are loaded: as the first process of a container, this one would not end by default.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    args = _parser().parse_args(argv)
    limits = Limits(**{name: getattr(args, name) for name in BOUNDS})
    keys = _keys(args.api_keys)
    sizes = [_size(text) for text in args.warm]
    extras.require("serve")
    from uso_jax.service import server  # slow to import, which --help does not need
    from uso_jax.web.listening import is_local

    if not keys and not is_local(args.host):
        print(f"note: {args.host} can be reached from other machines, and anyone may call: see --api_keys", flush=True)
    server.serve(
        load_weights(args),
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
    for name, (default, text) in BOUNDS.items():
        more = dict(type=type(default), default=default, metavar="N")
        group.add_argument(f"--{name}", **more, help=f"{text} (default: %(default)s)")
    add_weights_flags(parser)
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
    if (size := read_size(text)) is None:
        raise InputError(f"--warm {text} must be a size such as 1024x1024")
    return size
