# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""USO in a browser: upstream's controls (app.py of bytedance/USO), with a style library and records of the images.

What a browser sends is never trusted with a path: images come as uploads, saved styles by name, and made images are
known by their place in the gallery. Nothing is fetched from elsewhere, neither by the page nor by the server.
"""

import dataclasses
import functools
import html
import pathlib
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from PIL import Image

from uso_jax.app.uploads import ImageBox, Upload
from uso_jax.common.errors import InputError
from uso_jax.data.drawings.canvas import Pose
from uso_jax.data.drawings.look import DrawingStyle
from uso_jax.data.drawings.styles import render
from uso_jax.data.drawings.subjects import SUBJECTS
from uso_jax.images import files
from uso_jax.inference import styles as style_files
from uso_jax.inference.pipeline import USOPipeline

MAX_UPLOAD = "20mb"
_KEPT = 40  # images of a session that its gallery shows
_NAME = re.compile(r"\w[\w -]{0,63}")
_DEVICE = "device"  # events that share one place in the queue
_CSS = """
footer {display: none !important}
.strength {border: none !important}
.strength input[type=number] {min-width: 3em !important; width: 3.5em !important}
#images .preview {background: var(--block-background-fill) !important}
td.image .container {width: 56px !important; height: 56px !important; margin: auto !important}
"""
_HELP = """**Content image alone:** its subject in a new scene (*a clock on the table*), or restyled (*Transform the
image into watercolor style*; keep the input size to keep the layout). **Style image alone:** anything, in that style;
several styles blend. **Content and style image:** the content in the style; with an empty prompt the layout stays,
with a prompt it follows the prompt."""


def _told(function: Callable) -> Callable:
    """Show an InputError in the page as the sentence that it is; the server goes on."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except InputError as error:
            raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from error

    return wrapped


class StyleLibrary:
    """The folder of style files, seen by name."""

    def __init__(self, folder: pathlib.Path | None = None):
        self.folder = folder or style_files.style_library()

    def names(self) -> list[str]:
        """List the styles."""
        found = (path.stem for path in self.folder.glob("*.safetensors"))
        return sorted(name for name in found if _NAME.fullmatch(name))

    def read(self, name: str) -> style_files.StyleEmbedding:
        """Read a style of the list."""
        if name not in self.names():
            raise InputError(f"there is no saved style {name!r}; choose one of the list")
        return dataclasses.replace(style_files.read_style(self.folder / f"{name}.safetensors"), path=name)

    def write(self, name: str, style: style_files.StyleEmbedding) -> None:
        """Write a style under a new name."""
        if not _NAME.fullmatch(name):
            raise InputError("a style's name is made of letters, digits, spaces, - and _; give it such a name")
        if name in self.names():
            raise InputError(f"there is a style {name!r} already; choose another name")
        style_files.write_style(self.folder / f"{name}.safetensors", style)


class App:
    """What the page's buttons do."""

    def __init__(self, pipe: USOPipeline, styles: StyleLibrary, folder: pathlib.Path):
        self.pipe, self.styles, self.folder = pipe, styles, folder

    def generate(
        self,
        prompt: str,
        content: Upload | None,
        style: Upload | None,
        extra: Upload | None,
        saved: Sequence[str] | None,
        content_strength: float,
        style_strength: float,
        extra_strength: float,
        saved_strength: float,
        width: float,
        height: float,
        keep_size: bool,
        count: float,
        num_steps: float,
        guidance: float,
        content_ref: float,
        seed: float | None,
        made: list[tuple[str, dict]],
        progress=gr.Progress(),  # noqa: B008
    ):
        """Make images; give the gallery, the newest first, its first record and file, and the session's images."""
        progress(0, desc="Reading images")
        named = [(self.styles.read(name), saved_strength) for name in saved or ()]
        weighed = [(u.read(), s) for u, s in ((style, style_strength), (extra, extra_strength)) if u] + named
        first = secrets.randbelow(2**31) if seed is None or seed < 0 else int(seed)
        one = dict(
            prompt=prompt or "",
            contents=[content.read()] if content else [],
            styles=[item for item, _ in weighed],
            style_strength=[strength for _, strength in weighed],
            content_strength=content_strength,
            width=int(width),
            height=int(height),
            keep_size=keep_size,
            num_steps=int(num_steps),
            guidance=guidance if self.pipe.system.config.transformer.guidance_embed else None,
            content_ref=int(content_ref),
        )
        requests = [self.pipe.request(**one, seed=first + i) for i in range(int(count))]
        started: float | None = None

        def report(what: str, step: int, total: int) -> None:
            nonlocal started
            if what == "Drawing" and step == 0:
                started = time.monotonic()
            rate = f", {(time.monotonic() - started) / step:.2g} s a step" if what == "Drawing" and step else ""
            progress((step, total), desc=what + rate, unit="steps")

        result = self.pipe.generate(requests, progress=report)
        for note in dict.fromkeys(note for request in requests for note in request.notes):
            gr.Info(html.escape(note, quote=False))
        new = []
        for request, image, record in zip(requests, result.images, result.records, strict=True):
            identity = request.identity({**self.pipe.context, "concat_refs": False})
            path = self.folder / f"{identity}.png"
            record = record | {"identity": identity, "concat_refs": False}
            files.write_image(path, image, record)
            new.append((str(path), record))
        made = (new + made)[:_KEPT]
        return self._gallery(made), *self.show(made, 0), made

    def show(self, made: list[tuple[str, dict]], index: int) -> tuple[dict, Any]:
        """Give the record of an image of the gallery, and its file to download."""
        path, record = made[index]
        return record, gr.DownloadButton(value=path, interactive=True)

    def save_style(self, name: str, style: Upload | None, extra: Upload | None, chosen: Sequence[str] | None):
        """Write the style images as a style of the library, and choose it."""
        uploads = [upload for upload in (style, extra) if upload]
        if not uploads:
            raise InputError("there is no style to save: put in a style image first")
        name = (name or "").strip()
        encoded = self.pipe.encode_style([upload.read() for upload in uploads])
        self.styles.write(name, encoded)
        gr.Info(f"saved style {name}")
        return gr.Dropdown(choices=self.styles.names(), value=[*(chosen or ()), name]), ""

    @staticmethod
    def _gallery(made: list[tuple[str, dict]]) -> Any:
        asked = ((path, record["request"]) for path, record in made)
        images = [(path, f"{one['prompt'] or '(no prompt)'} · seed {one['seed']}") for path, one in asked]
        return gr.Gallery(images, selected_index=0)

    # ------------------------------------------------------------------------------------------------------ page

    def page(self) -> gr.Blocks:
        """Lay out the page."""
        bundle = self.pipe.pretrained
        defaults, side = bundle.defaults, self.pipe.system.config.pixels_per_token
        embedded = self.pipe.system.config.transformer.guidance_embed
        with gr.Blocks(title="USO", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
            made = gr.State([])
            weights = html.escape(pathlib.Path(bundle.name).name)
            gr.Markdown(f"# USO\nAny subject in any style. Weights: {weights}, {bundle.dtype}.")
            with gr.Row():
                with gr.Column():
                    prompt = gr.Textbox(label="Prompt", lines=2, placeholder="What to draw", elem_id="prompt")
                    with gr.Row():
                        content, content_strength = _reference("Content image", "content")
                        style, style_strength = _reference("Style image", "style")
                        extra, extra_strength = _reference("Extra style image", "extra")
                    with gr.Row():
                        saved = gr.Dropdown(
                            self.styles.names(), multiselect=True, label="Saved styles", elem_id="saved", scale=2
                        )
                        saved_strength = _strength("Strength", "saved")
                    with gr.Row():
                        scale = lambda name: gr.Slider(
                            max(getattr(defaults, name) // 2 // side, 1) * side,
                            max(getattr(defaults, name) * 3 // 2 // side, 1) * side,
                            getattr(defaults, name),
                            step=side,
                            label=name.capitalize(),
                            elem_id=name,
                        )
                        width, height = scale("width"), scale("height")
                    with gr.Row(equal_height=True):
                        keep_size = gr.Checkbox(
                            label="Keep input size",
                            info="Take the content image's shape, to edit only its style",
                            scale=2,
                        )
                        seed = gr.Number(-1, label="Seed, -1 for any", precision=0, elem_id="seed")
                    start = gr.Button("Generate", variant="primary", elem_id="generate")
                    with gr.Accordion("Advanced options", open=False):
                        with gr.Row():
                            num_steps = gr.Slider(
                                1, max(50, defaults.num_steps), defaults.num_steps, step=1, label="Number of steps"
                            )
                            guidance = gr.Slider(1.0, max(5.0, defaults.guidance), defaults.guidance, step=0.1,
                                                 label="Guidance", visible=embedded)  # fmt: skip
                        with gr.Row():
                            content_ref = gr.Slider(
                                side, 2 * defaults.content_ref, defaults.content_ref, step=side,
                                label="Content reference size",
                            )  # fmt: skip
                            count = gr.Slider(1, 8, 1, step=1, label="Images", info="With seeds one apart")
                with gr.Column():
                    gallery = gr.Gallery(
                        label="Images", columns=3, object_fit="contain", height=460, buttons=["fullscreen"],
                        interactive=False, elem_id="images",
                    )  # fmt: skip
                    download = gr.DownloadButton("Download PNG, with its record", interactive=False, elem_id="download")
                    with gr.Accordion("Record", open=False):
                        record = gr.JSON(show_label=False, elem_id="record")
                    with gr.Accordion("Style library", open=False), gr.Row(equal_height=True):
                        name = gr.Textbox(
                            label="Save the style images as", placeholder="a name", elem_id="style_name", scale=2
                        )
                        save = gr.Button("Save style", elem_id="save_style")
                    gr.Markdown(_HELP)
            task = gr.Textbox(visible=False, label="Task")
            gr.Examples(
                _examples(self.folder), [task, prompt, content, style, extra, seed], label="Examples",
                cache_examples=False, examples_per_page=20, api_visibility="private",
            )  # fmt: skip

            hidden = dict(api_visibility="private")
            drawn = [gallery, record, download, made]
            inputs = [
                prompt, content, style, extra, saved, content_strength, style_strength, extra_strength, saved_strength,
                width, height, keep_size, count, num_steps, guidance, content_ref, seed, made,
            ]  # fmt: skip
            gr.on(
                [start.click, prompt.submit], _told(self.generate), inputs, drawn, concurrency_id=_DEVICE,
                concurrency_limit=1, show_progress_on=gallery, **hidden,
            )  # fmt: skip
            save.click(
                _told(self.save_style), [name, style, extra, saved], [saved, name], concurrency_id=_DEVICE, **hidden
            )

            def selected(made, event: gr.SelectData):
                return self.show(made, event.index)

            gallery.select(selected, made, [record, download], queue=False, **hidden)
            listed = lambda: gr.Dropdown(choices=self.styles.names())
            page.load(listed, None, saved, queue=False, show_progress="hidden", **hidden)
        return page


def _reference(label: str, name: str) -> tuple[gr.Image, gr.Slider]:
    with gr.Column(min_width=150):
        image = ImageBox(label=label, sources=["upload", "clipboard"], height=230, buttons=[], elem_id=name)
        return image, _strength("Strength", name)


def _strength(label: str, name: str) -> gr.Slider:
    return gr.Slider(0, 3, 1, step=0.05, label=label, buttons=[], elem_id=f"{name}_strength", elem_classes="strength")


def _examples(folder: pathlib.Path) -> list[list]:
    """Draw examples of every task: rows of task, prompt, content, style, extra style and seed."""

    def file(subject: str, style: DrawingStyle) -> str:
        path = folder / f"{subject}_{style.name}.png"
        Image.fromarray(render(SUBJECTS[subject], Pose(0.75), style, 256)).save(path)
        return str(path)

    blue, red, cream, black = (0.16, 0.36, 0.8), (0.85, 0.2, 0.2), (0.98, 0.94, 0.84), (0.1, 0.1, 0.12)
    look = lambda name, fill, ground, *names: DrawingStyle(name, fill, ground, black, *names)
    fish = file("fish", look("plain", blue, cream, "blue", "cream"))
    mushroom = file("mushroom", look("plain", red, cream, "red", "cream"))
    dots = file("heart", look("halftone", red, cream, "red", "cream"))
    lines = file("star", look("engraving", black, cream, "black", "cream"))
    glass = file("leaf", look("stained glass", (0.2, 0.6, 0.3), cream, "green", "cream"))
    return [
        ["text", "a picture of a fish", None, None, None, 1],
        ["subject", "a mushroom in another place", mushroom, None, None, 2],
        ["style", "a picture of a cat", None, dots, None, 3],
        ["style", "a drawing of a house", None, glass, None, 4],
        ["style + subject, layout kept", "", fish, lines, None, 5],
        ["style + subject, new layout", "a fish in another place", fish, dots, None, 6],
        ["several styles", "a picture of a tree", None, lines, glass, 7],
    ]


def serve(pipe: USOPipeline, *, host: str, port: int | None, style_folder: pathlib.Path | None = None) -> None:
    """Serve the page until the process is interrupted."""
    font = ["system-ui", "sans-serif"]
    with tempfile.TemporaryDirectory(prefix="uso_app_") as folder:
        page = App(pipe, StyleLibrary(style_folder), pathlib.Path(folder)).page()
        page.queue(max_size=32)
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
