# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The server of the web app.

It trusts no path that a browser sends: images are uploads, saved styles are names, and generated images are positions
in the gallery.
"""

import pathlib
import tempfile

import gradio as gr

from uso_jax.app.actions import Actions
from uso_jax.app.page import build_page
from uso_jax.app.style_library import StyleLibrary
from uso_jax.common.errors import InputError
from uso_jax.inference.pipeline import USOPipeline

MAX_UPLOAD = "20mb"
MAX_WAITING = 32
_CSS = """
footer {display: none !important}
.strength {border: none !important}
.strength input[type=number] {min-width: 3em !important; width: 3.5em !important}
#images .preview {background: var(--block-background-fill) !important}
td.image .container {width: 56px !important; height: 56px !important; margin: auto !important}
"""


def serve(pipe: USOPipeline, *, host: str, port: int | None, style_folder: pathlib.Path | None = None) -> None:
    """Serve the page until the process is interrupted.

    Args:
      pipe: generates the images.
      host: address to listen on.
      port: by default the first free one from 7860.
      style_folder: folder of saved styles, by default the user's style library.

    Raises:
      InputError: the address cannot be used.
    """
    font = ["system-ui", "sans-serif"]
    with tempfile.TemporaryDirectory(prefix="uso_app_") as folder:
        page = build_page(Actions(pipe, StyleLibrary(style_folder), pathlib.Path(folder)))
        page.queue(max_size=MAX_WAITING)
        try:
            page.launch(
                server_name=host,
                server_port=port,
                max_file_size=MAX_UPLOAD,
                theme=gr.themes.Default(font=font, font_mono=["ui-monospace", "monospace"]),
                css=_CSS,
                share=False,
                inbrowser=False,
                ssr_mode=False,
                run_history=False,
                enable_monitoring=False,
                mcp_server=False,
                allowed_paths=[],
                footer_links=[],
                quiet=True,
                prevent_thread_lock=True,
            )
        except OSError as error:
            raise InputError(f"cannot listen on {host}: {error}; choose another --host or --port") from error
        print(f"USO at {page.local_url}", flush=True)
        page.block_thread()
