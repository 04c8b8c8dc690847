# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The process of the service: it warms up, serves, and at SIGTERM draws what waits before it ends."""

import asyncio
import contextlib
import logging
import pathlib
from collections.abc import AsyncIterator, Sequence

import fastapi
import numpy as np
import uvicorn

from uso_jax.inference.options import GenerationOptions
from uso_jax.inference.pipeline import USOPipeline
from uso_jax.inference.style_library import StyleLibrary
from uso_jax.service.adapters import AdapterFolder
from uso_jax.service.api import Api
from uso_jax.service.journal import Journal, JournalHandler
from uso_jax.service.limits import Limits
from uso_jax.service.metrics import Metrics
from uso_jax.service.work import Worker
from uso_jax.web.hosts import Hosts
from uso_jax.web.listening import Server, address_of, listening

FIRST_PORT = 8000


def serve(
    pipe: USOPipeline,
    limits: Limits,
    *,
    host: str,
    port: int | None,
    allowed_hosts: Sequence[str] = (),
    keys: Sequence[str] = (),
    adapters: pathlib.Path | None = None,
    styles: pathlib.Path | None = None,
    sizes: Sequence[tuple[int, int]] = (),
    log_prompts: bool = False,
) -> None:
    """Serve until the process is asked to end; then draw what waits, within the limits' seconds.

    Args:
      pipe: draws the images.
      limits: of requests and of the queue.
      host: address to listen on.
      port: by default the first free one from 8000.
      allowed_hosts: names by which clients may call the server, besides those of this machine.
      keys: of clients; none: everyone who reaches the server may call.
      adapters: folder of adapters that requests may name.
      styles: folder of saved styles, by default the user's style library.
      sizes: (width, height) of images whose programs are compiled before the server answers.
      log_prompts: whether the log holds prompts.

    Raises:
      InputError: the address or a folder cannot be used.
    """
    folder, journal, metrics = AdapterFolder(adapters), Journal(log_prompts), Metrics()
    for name in ("uso_jax", "uvicorn.error"):
        logging.getLogger(name).handlers = [JournalHandler(journal)]
    with listening(host, port, FIRST_PORT) as listener:
        for width, height in sizes:
            warm(pipe, width, height, limits.batch)
            journal.write("warm", size=f"{width}x{height}")
        worker = Worker(pipe, limits, metrics, folder.find)
        api = Api(
            worker,
            limits,
            hosts=Hosts(host, allowed_hosts),
            keys=keys,
            adapters=folder,
            styles=StyleLibrary(styles),
            journal=journal,
            metrics=metrics,
        )

        @contextlib.asynccontextmanager
        async def lifespan(_: fastapi.FastAPI) -> AsyncIterator[None]:
            yield
            await asyncio.to_thread(worker.close)
            journal.write("end")

        api.app.router.lifespan_context = lifespan
        grace = round(limits.seconds + limits.body_seconds) + 5
        server = Server(
            uvicorn.Config(
                api,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=grace,
                limit_concurrency=4 * limits.queue + 64,
                ws="none",
                server_header=False,
            )
        )
        server.address = address_of(host, listener.getsockname()[1])
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn repeats the signal when all requests are answered
            server.run(sockets=[listener])


def warm(pipe: USOPipeline, width: int, height: int, batch: int) -> None:
    """Compile the programs of one size: text alone, and content with style, for one image and for a full batch."""
    grey = np.full((64, 64, 3), 128, np.uint8)
    options = GenerationOptions(width=width, height=height, num_steps=1)
    for references in ({}, {"contents": [grey], "styles": [grey]}):
        if references and pipe.system.config.transformer.projector is None:
            continue
        for count in {1, batch}:
            pipe.generate([pipe.request("warm", **references, options=options)] * count)
