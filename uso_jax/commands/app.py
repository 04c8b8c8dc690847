# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Generate images with USO in a browser.

    uso-app                                   mini weights, on http://127.0.0.1:7860
    uso-app --weights DIR --host 0.0.0.0      reachable from other machines: everyone who reaches it can generate
    uso-app --training only                   trains adapters on images below this folder, and loads no weights
    uso-app --preferences runs/policy         people choose the better of two images of a run; loads no weights
    uso-app --server http://tpu-vm:8000       draws on a uso-serve server, and loads no weights

It needs gradio: pip install 'uso_jax[app]'
"""

import argparse
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from uso_jax.commands.weights_flags import add_weights_flags, load_weights
from uso_jax.common import extras
from uso_jax.common.errors import InputError, exit_cleanly

if TYPE_CHECKING:
    from uso_jax.app.preference_page import Comparisons
    from uso_jax.app.trainer import Trainer
    from uso_jax.inference.pipeline import USOPipeline
    from uso_jax.service.client import ServiceClient


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until it is interrupted. Errors of the user exit with code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--server", metavar="URL", help="uso-serve server to draw on; its key is read from USO_API_KEY")
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
    add(
        "--training",
        choices=("on", "off", "only"),
        help="serve the training page: beside images, not, or alone (default: on if only this machine can reach it)",
    )
    add(
        "--training_folder",
        type=pathlib.Path,
        default=pathlib.Path(),
        metavar="DIR",
        help="folder of the images, weights and runs of the training page (default: this one)",
    )
    add(
        "--preferences",
        type=pathlib.Path,
        metavar="WORKDIR",
        help="serve only a page on which people compare the images that this run has made (docs/policy.md)",
    )
    add_weights_flags(parser)
    args = parser.parse_args(argv)
    if args.upload_quota is not None and args.upload_quota < 1:
        raise InputError(f"--upload_quota {args.upload_quota} must be at least 1 MB")
    if args.preferences is not None and (args.server is not None or args.training is not None):
        raise InputError("--preferences serves a page without others; leave out --server and --training")

    extras.require("app")
    from uso_jax.app import server  # slow to import, which --help does not need
    from uso_jax.web.listening import is_local

    training = "off" if args.preferences else args.training or ("on" if is_local(args.host) else "off")
    comparisons = _comparisons(args.preferences) if args.preferences else None
    alone = training == "only" or comparisons is not None
    pipe = None if alone else load_weights(args) if args.server is None else _connect(args.server)
    more = {} if args.upload_quota is None else {"upload_quota": args.upload_quota}
    server.serve(
        pipe,
        host=args.host,
        port=args.port,
        style_folder=args.style_folder,
        allowed_hosts=args.allowed_hosts,
        trainer=None if training == "off" else _trainer(args.training_folder, pipe),
        comparisons=comparisons,
        **more,
    )


def _trainer(folder: pathlib.Path, pipe: "USOPipeline | ServiceClient | None") -> "Trainer":
    """Return what the training page starts runs with; beside weights on an accelerator, no other process computes."""
    import jax

    from uso_jax.app.trainer import Trainer
    from uso_jax.app.training_folder import TrainingFolder
    from uso_jax.inference.pipeline import USOPipeline

    held = isinstance(pipe, USOPipeline) and jax.default_backend() != "cpu"
    refusal = "This app holds the accelerator with its weights; to train, start it with: uso-app --training only"
    return Trainer(TrainingFolder(folder), refusal if held else "")


def _comparisons(workdir: pathlib.Path) -> "Comparisons":
    """Return the pairs of a run's images."""
    from uso_jax.app.preference_page import Comparisons

    return Comparisons(workdir)


def _connect(address: str) -> "ServiceClient":
    """Return a server in place of weights."""
    from uso_jax.service.client import ServiceClient

    return ServiceClient(address, os.environ.get("USO_API_KEY"))
