# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The page of the web app: upstream's controls (app.py of bytedance/USO), a style library and records of the images.

The page and the server fetch nothing from other machines.
"""

import contextlib
import html
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import gradio as gr

from uso_jax.app import examples
from uso_jax.app.actions import Actions, show_errors
from uso_jax.app.form import Form
from uso_jax.app.preference_page import Comparisons, PreferencePage
from uso_jax.app.trainer import Trainer
from uso_jax.app.training_page import TrainingPage

_log = logging.getLogger("uso_jax")
_DEVICE = "device"  # events that share one place in the queue
_HELP = """
**Content image only:** the subject in a new scene (*a clock on the table*), or the image in another style (*Transform
the image into watercolor style*; keep the input size to keep the layout).

**Style image only:** any subject in that style. Several styles are combined.

**Content and style image:** the content in the style. An empty prompt keeps the layout; with a prompt, the image
follows the prompt.
"""


class _Page(gr.Blocks):
    """A page whose every error is a sentence."""

    async def preprocess_data(self, *args: Any, **kwargs: Any) -> list[Any]:
        try:
            return await super().preprocess_data(*args, **kwargs)
        except gr.Error as error:
            error.print_exception = False  # the user's mistake needs no traceback in the log
            raise
        except Exception as error:  # gradio fails in many ways on messages that no browser sends
            message = f"the page sent a value that it cannot have ({type(error).__name__}); reload the page"
            raise gr.Error(message, print_exception=False) from error

    async def process_api(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            return await super().process_api(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            _log.warning("a request of the page failed", exc_info=error)
            raise gr.Error(
                f"this request failed ({type(error).__name__}); reload the page. The server's log says more",
                print_exception=False,
            ) from error


def build_page(
    actions: Actions | None, trainer: Trainer | None, images: pathlib.Path, comparisons: Comparisons | None = None
) -> gr.Blocks:
    """Lay out the page and connect its events.

    Args:
      actions: of the part that generates; None: there is none.
      trainer: of the part that trains; None: there is none.
      images: folder of the files that the page may show.
      comparisons: of the part for preferences; None: there is none.
    """
    parts: dict[str, Callable[[], object]] = {}
    if actions is not None:
        parts["Images"] = lambda: _lay_out_generation(actions, page)
    if trainer is not None:
        parts["Training"] = lambda: TrainingPage(trainer, images, page)
    if comparisons is not None:
        parts["Preferences"] = lambda: PreferencePage(comparisons, images, page)
    with _Page(title="USO", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        weights = ""
        if actions is not None:
            about = actions.pipe.about
            weights = f" Weights: {html.escape(about.name)}, {about.dtype}."
        gr.Markdown(f"# USO\nAny subject in any style.{weights}")
        with gr.Tabs() if len(parts) > 1 else contextlib.nullcontext():
            for title, lay_out in parts.items():
                with gr.Tab(title) if len(parts) > 1 else contextlib.nullcontext():
                    lay_out()
    for event in page.fns.values():  # those of gr.Examples too: gradio answers errors outside the queue with status 500
        event.queue = True
    return page


def _lay_out_generation(actions: Actions, page: gr.Blocks) -> None:
    """Lay out the part that generates and connect its events."""
    if about := examples.about(actions.pipe.about.name):
        gr.Markdown(about, elem_id="about")
    with gr.Row(elem_id="main"):
        with gr.Column():
            form = Form(actions.pipe.about, actions.styles.names())
        with gr.Column(elem_id="results"):
            gallery = gr.Gallery(
                label="Images", columns=3, object_fit="contain", height=460, buttons=["fullscreen"],
                interactive=False, elem_id="images",
            )  # fmt: skip
            download = gr.DownloadButton("Download PNG with record", interactive=False, elem_id="download")
            with gr.Accordion("Record", open=False):
                record = gr.JSON(show_label=False, elem_id="record")
            with gr.Accordion("Style library", open=False), gr.Row(equal_height=True):
                name = gr.Textbox(label="Save the style images as", placeholder="name", elem_id="style_name", scale=2)
                save = gr.Button("Save style", elem_id="save_style")
            gr.Markdown(_HELP)
    task = gr.Textbox(visible=False, label="Task")
    rows = examples.write_examples(actions.folder / "examples", actions.pipe.about.name)
    gr.Examples(
        rows, [task, *(form.controls[name] for name in examples.COLUMNS)],
        label="Examples", cache_examples=False, examples_per_page=20, api_visibility="private",
    )  # fmt: skip

    made = gr.State([])
    hidden = dict(api_visibility="private")

    @show_errors
    def generate(values: dict, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        named = {name: values[control] for name, control in form.controls.items()}
        return actions.generate(named, values[made], progress, request.session_hash)

    generating = gr.on(
        [form.submit.click, form.controls["prompt"].submit], generate, {*form.controls.values(), made},
        [gallery, record, download, made], concurrency_id=_DEVICE, concurrency_limit=1, show_progress_on=gallery,
        scroll_to_output=True, **hidden,
    )  # fmt: skip
    form.stop.click(None, None, None, cancels=[generating], **hidden)
    style, extra, saved = (form.controls[name] for name in ("style", "extra", "saved"))
    save.click(
        show_errors(actions.save_style), [name, style, extra, saved], [saved, name], concurrency_id=_DEVICE,
        **hidden,
    )  # fmt: skip

    @show_errors
    def select(made, event: gr.SelectData):
        return actions.show(made, event.index)

    quick = dict(concurrency_limit=None, show_progress="hidden", **hidden)
    gallery.select(select, made, [record, download], **quick)
    list_styles = lambda: gr.Dropdown(choices=actions.styles.names())
    page.load(list_styles, None, saved, **quick)
