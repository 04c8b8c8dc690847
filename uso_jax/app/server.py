# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The server of the web app.

It trusts no path that a browser sends: images are uploads, saved styles are names, and generated images are positions
in the gallery. `uso_jax.app.guard` says which requests reach the page at all.
"""

import asyncio
import contextlib
import os
import pathlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import fastapi
import gradio as gr
import uvicorn

from uso_jax.app import quota
from uso_jax.app.actions import Actions
from uso_jax.app.guard import Guard
from uso_jax.app.page import build_page
from uso_jax.app.painter import Painter
from uso_jax.app.preference_page import Comparisons
from uso_jax.app.trainer import Trainer
from uso_jax.inference.style_library import StyleLibrary
from uso_jax.service.client import ServerStyles, ServiceClient
from uso_jax.web.hosts import Hosts
from uso_jax.web.listening import Server, address_of, listening

FIRST_PORT = 7860
MAX_WAITING = 32
MAX_SESSIONS = 500  # whose images and values are remembered
UPLOAD_QUOTA = 500  # megabytes of one client
CLIENTS = 8  # that may use up their quotas at the same time
_CSS = (pathlib.Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def serve(
    pipe: Painter | None,
    *,
    host: str,
    port: int | None,
    style_folder: pathlib.Path | None = None,
    allowed_hosts: Sequence[str] = (),
    upload_quota: int = UPLOAD_QUOTA,
    trainer: Trainer | None = None,
    comparisons: Comparisons | None = None,
) -> None:
    """Serve the page until the process is interrupted.

    Args:
      pipe: generates the images; None: the page has no such part.
      host: address to listen on.
      port: by default the first free one from 7860.
      style_folder: folder of saved styles, by default the user's style library.
      allowed_hosts: names by which browsers may call the server, besides those of this machine.
      upload_quota: megabytes that one client may upload within some hours.
      trainer: trains; None: the page has no such part.
      comparisons: pairs of images to judge; None: the page has no such part.

    Raises:
      InputError: the address cannot be used.
    """
    with listening(host, port, FIRST_PORT) as listener, _folders() as (uploads, images):
        saved = ServerStyles(pipe) if isinstance(pipe, ServiceClient) else StyleLibrary(style_folder)
        actions = None if pipe is None else Actions(pipe, saved, images)
        page = build_page(actions, trainer, images, comparisons)
        page.queue(max_size=MAX_WAITING)
        page.state_session_capacity = MAX_SESSIONS
        page.has_launched = page.is_running = True  # otherwise gradio does not check the paths that browsers name
        limits = quota.UploadQuota(upload_quota * quota.MEGABYTE, CLIENTS * upload_quota * quota.MEGABYTE)
        clean = lambda: quota.sweep(page.upload_file_set, uploads, images)
        app = Guard(
            _gradio_app(page, clean),
            Hosts(host, allowed_hosts),
            limits,
            folder=uploads.parent,
            events=page.fns.keys(),
            leave=actions.stop if actions is not None else lambda session: None,
        )
        server = Server(
            uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=3, ws="none", server_header=False)
        )
        server.address = address_of(host, listener.getsockname()[1])
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn has ended the requests by then
            server.run(sockets=[listener])


def _gradio_app(page: gr.Blocks, clean: Callable[[], None]) -> fastapi.FastAPI:
    """Return the page as an application that cleans up now and then."""

    @contextlib.asynccontextmanager
    async def lifespan(_: fastapi.FastAPI) -> AsyncIterator[None]:
        async def work() -> None:
            while True:
                await asyncio.sleep(quota.SWEEP_EVERY)
                await asyncio.to_thread(clean)

        task = asyncio.create_task(work())
        yield
        task.cancel()

    font = ["system-ui", "sans-serif"]
    return gr.mount_gradio_app(
        fastapi.FastAPI(lifespan=lifespan, openapi_url=None),
        page,
        path="/",
        max_file_size=quota.MAX_FILE,
        theme=gr.themes.Default(font=font, font_mono=["ui-monospace", "monospace"]),
        css=_CSS,
        show_error=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        allowed_paths=[],
        footer_links=[],
    )


@contextlib.contextmanager
def _folders() -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """Make the folders of uploads and of generated images, which are removed at the end."""
    chosen = os.environ.get("GRADIO_TEMP_DIR")
    if chosen:
        pathlib.Path(chosen).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="uso_app_", dir=chosen, ignore_cleanup_errors=True) as folder:
        uploads, images = (pathlib.Path(folder).resolve() / name for name in ("uploads", "images"))
        uploads.mkdir()
        images.mkdir()
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        try:
            yield uploads, images
        finally:
            if chosen:
                os.environ["GRADIO_TEMP_DIR"] = chosen
            else:
                del os.environ["GRADIO_TEMP_DIR"]
