# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The part of the page that trains adapters: settings, plan, start and stop, curves, samples and export.

It shows what a run's directory says, every two seconds, so a run that was started on the command line is shown too.
"""

import hashlib
import html
import math
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
import pandas as pd

from uso_jax.app import training_text
from uso_jax.app.actions import show_errors
from uso_jax.app.form import named
from uso_jax.app.run_view import RunView
from uso_jax.app.trainer import FORMATS, Trainer, shown
from uso_jax.app.training_folder import RUNS
from uso_jax.app.training_settings import MAX_CAPTION, TrainingSettings, recipes
from uso_jax.common.errors import InputError

_SECONDS = 2.0  # between looks at the run
_DEVICE = "training"  # events that share one place in the queue
_HEIGHT = 230  # of a curve, in pixels
_COLOURS = {"training loss": "#6366f1", "held-out loss": "#f97316"}
_ABOUT = """
Trains adapters on your own images: a folder of `NAME.png`, optionally with `NAME.content.png`, `NAME.style.png` and
`NAME.txt`. The run is that of the command shown below; it goes on when this page or its server is closed.
"""


class TrainingPage:
    """The training part, laid out in the current Blocks.

    Args:
      trainer: starts and stops runs.
      images: folder of files that the page may show.
      page: the Blocks.
    """

    def __init__(self, trainer: Trainer, images: pathlib.Path, page: gr.Blocks):
        self.trainer, self.images = trainer, images
        gr.Markdown(f"Folder: `{trainer.folder.path}`\n{_ABOUT}", elem_id="training_about")
        if trainer.refusal:
            gr.Markdown(f"**{html.escape(trainer.refusal, quote=False)}**", elem_id="training_refused")
        with gr.Row(elem_id="training"):
            with gr.Column():
                self._lay_out_settings()
            with gr.Column():
                self._lay_out_run()
        self._connect(page)

    # ------------------------------------------------------------------------------------------------ layout

    def _lay_out_settings(self) -> None:
        data = self.trainer.folder.data()
        self.settings: dict[str, gr.components.Component] = {
            "data": gr.Dropdown(
                data, value=next(iter(data), None), label="Images", allow_custom_value=True, elem_id="data",
                info="Folder, list or archive inside the folder above",
            ),
            "recipe": gr.Dropdown(
                [(f"{name}: {about}", name) for name, about in recipes().items()], value=next(iter(recipes())),
                label="Recipe", elem_id="recipe",
            ),
            "weights": gr.Dropdown(
                self._weights(), value="", label="Weights", allow_custom_value=True, elem_id="weights"
            ),
            "name": gr.Textbox(
                label="Name", placeholder="that of the images", max_length=64, elem_id="name",
                info="The same name and settings continue a run",
            ),
        }  # fmt: skip
        # Gradio shows an empty number as 0.
        number = dict(value=0, minimum=0, min_width=110)
        with gr.Row():
            self.settings |= {
                "steps": gr.Number(label="Steps", precision=0, info="0: by the images", elem_id="steps", **number),
                "learning_rate": gr.Number(
                    label="Learning rate", info="0: the recipe's", elem_id="learning_rate", **number
                ),
                "every": gr.Number(
                    label="Samples every", precision=0, info="0: the recipe's", elem_id="every", **number
                ),
            }
        self.settings["caption"] = gr.Textbox(
            label="Caption of images without one", placeholder="such as: a drawing in zxq style", elem_id="caption",
            max_length=MAX_CAPTION,
        )  # fmt: skip
        for control in self.settings.values():
            control.preprocess = named(control.label, control.preprocess)
        self.command = gr.Textbox(
            label="The same run on the command line",
            interactive=False,
            lines=2,
            max_lines=12,
            buttons=["copy"],
            elem_id="command",
        )
        with gr.Row():
            self.plan = gr.Button("Plan", elem_id="plan", min_width=80)
            self.start = gr.Button("Start", variant="primary", elem_id="start", scale=2, min_width=80)
        self.findings = gr.HTML(elem_id="findings", padding=False)

    def _lay_out_run(self) -> None:
        self.run = gr.Dropdown(
            self.trainer.folder.runs(), value=None, label="Run", allow_custom_value=True, elem_id="run",
            info=f"Any --workdir inside the folder above; new ones are in {RUNS}",
        )  # fmt: skip
        self.status = gr.HTML(elem_id="status", padding=False)
        with gr.Row():
            self.stop = gr.Button("Stop", interactive=False, elem_id="stop_training", min_width=80)
            self.resume = gr.Button("Resume", interactive=False, elem_id="resume", min_width=80)
        curve = dict(
            x="step", y="value", height=_HEIGHT, x_title="step", x_axis_format="~f", y_axis_format="~g",
            buttons=["fullscreen"],
        )  # fmt: skip
        gr.HTML(training_text.legend(_COLOURS), elem_id="legend", padding=False)
        self.losses = gr.LinePlot(
            color="curve", color_map=_COLOURS, colors_in_legend=[], y_title="loss", label="Loss", tooltip="all",
            elem_id="losses", **curve,
        )  # fmt: skip
        self.rate = gr.LinePlot(y_title="rate", label="Learning rate", elem_id="rate", **curve | {"height": 150})
        self.grids = gr.Gallery(
            label="Samples of held-out images", preview=True, selected_index=0, object_fit="contain", height=380,
            buttons=["fullscreen"], interactive=False, elem_id="grids",
        )  # fmt: skip
        with gr.Accordion("Export", open=False, elem_id="exports"):
            self.formats = gr.CheckboxGroup(
                [(title, name) for name, title in FORMATS.items()], value=list(FORMATS), show_label=False,
                elem_id="formats",
            )  # fmt: skip
            self.export = gr.Button("Export the adapter", interactive=False, elem_id="export")
            self.files = gr.File(
                label="Files", file_count="multiple", interactive=False, visible=False, elem_id="files"
            )
            self.exported = gr.Markdown(elem_id="exported")

    def _weights(self) -> list[tuple[str, str]]:
        return [("the recipe's", ""), *((name, name) for name in self.trainer.folder.weights())]

    # ------------------------------------------------------------------------------------------------ events

    def _connect(self, page: gr.Blocks) -> None:
        hidden = dict(api_visibility="private")
        quick = dict(concurrency_limit=None, show_progress="hidden", **hidden)
        device = dict(concurrency_id=_DEVICE, concurrency_limit=1, **hidden)
        drawn = gr.State({})  # what the session's page shows
        show, parts = [self.run, drawn], self._shown(drawn)
        controls = list(self.settings.values())

        for control in controls:
            control.change(self._describe, controls, self.command, trigger_mode="always_last", **quick)
        self.plan.click(show_errors(self._plan), controls, self.findings, show_progress_on=self.findings, **device)
        started = self.start.click(show_errors(self._start), controls, self.run, **device)
        started.success(self._show, show, parts, **quick)
        for button, function in ((self.stop, self.trainer.stop), (self.resume, self.trainer.resume)):
            done = button.click(show_errors(_for_run(function)), self.run, None, **quick)
            done.success(self._show, show, parts, **quick)
        self.run.change(self._show, show, parts, **quick)
        self.export.click(
            show_errors(self._export), [self.run, self.formats], [self.files, self.exported],
            show_progress_on=self.exported, **device,
        )  # fmt: skip
        gr.Timer(_SECONDS).tick(self._show, show, parts, trigger_mode="once", **quick)
        lists = [self.run, self.settings["data"], self.settings["weights"]]
        loaded = page.load(self._refresh, None, lists, **quick)
        loaded.success(self._describe, controls, self.command, **quick)

    def _shown(self, drawn: gr.State) -> list[gr.components.Component]:
        return [drawn, self.status, self.losses, self.rate, self.grids, *self._buttons()]

    def _buttons(self) -> list[gr.Button]:
        return [self.start, self.stop, self.resume, self.export]

    def _settings(self, values: tuple) -> TrainingSettings:
        given = dict(zip(self.settings, values, strict=True))
        return TrainingSettings(**{name: value for name, value in given.items() if value})

    def _describe(self, *values: Any) -> str:
        """Return the command line of the settings, or what is wrong with them."""
        try:
            return shown("uso-train", self._settings(values).arguments(self.trainer.folder))
        except InputError as error:
            return str(error)

    def _plan(self, *values: Any) -> str:
        return training_text.findings(self.trainer.plan(self._settings(values)))

    def _start(self, *values: Any) -> Any:
        name = self.trainer.start(self._settings(values))
        return gr.Dropdown(choices=self._runs(name), value=name)

    def _runs(self, *more: str) -> list[str]:
        return list(dict.fromkeys([*more, *self.trainer.folder.runs()]))

    def _refresh(self) -> tuple[Any, ...]:
        """Return the lists, as they are now; the run under way is chosen, or else the newest."""
        running = self.trainer.running()
        runs = self._runs(*([running] if running else []))
        return (
            gr.Dropdown(choices=runs, value=runs[0] if runs else None),
            gr.Dropdown(choices=self.trainer.folder.data()),
            gr.Dropdown(choices=self._weights()),
        )

    def _show(self, name: str | None, drawn: Mapping[str, Any]) -> list[Any]:
        """Return what has changed since the page was drawn, for the components of `_shown`."""
        try:
            view = self.trainer.view(name) if name else None
            parts = self._parts(name, view)
        except InputError as error:
            parts = self._parts(None, None) | {"status": training_text.sentence(str(error))}
        changed = [gr.skip() if drawn.get(key) == value else _component(key, value) for key, value in parts.items()]
        return [dict(parts), *changed]

    def _parts(self, name: str | None, view: RunView | None) -> dict[str, Any]:
        """Return values by component, in the order of `_shown`, that can be compared."""
        curves = view.curves if view else {}
        losses = {key: points for key, points in curves.items() if key != "learning rate"}
        runs = view is not None and view.state in ("starting", "running", "stopping")
        return {
            "status": training_text.status(view),
            "losses": losses,
            "rate": {key: points for key, points in curves.items() if key == "learning rate"},
            "grids": [(str(self._copy(path)), training_text.caption(path)) for path in view.grids] if view else [],
            "start": not self.trainer.refusal and not self.trainer.running(),
            "stop": runs and view.state != "stopping",
            "resume": view is not None and not runs and view.state != "finished" and bool(view.arguments),
            "export": view is not None and view.saved,
        }

    def _copy(self, path: pathlib.Path) -> pathlib.Path:
        """Copy a sample grid to where the page may show it from, unless it is there."""
        facts = path.stat()
        name = hashlib.sha256(f"{path} {facts.st_mtime_ns} {facts.st_size}".encode()).hexdigest()[:24]
        copied = self.images / f"{name}.png"
        if not copied.exists():
            shutil.copyfile(path, copied)
        return copied

    def _export(self, name: str | None, formats: list[str]) -> tuple[Any, str]:
        if not name:
            raise InputError("choose a run first")
        files = self.trainer.export(name, formats)
        places = "\n".join(f"- `{self.trainer.folder.name(file)}`" for file in files)
        return gr.File(value=[str(self._link(file)) for file in files], visible=True), f"Written:\n{places}"

    def _link(self, file: pathlib.Path) -> pathlib.Path:
        """Copy an exported file to where the page may send it from."""
        place = self.images / "exports" / hashlib.sha256(str(file).encode()).hexdigest()[:12] / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
        return place


def _for_run(function: Callable[[str], None]) -> Callable[[str | None], None]:
    """Wrap a function of a run's name: without a run, it asks for one."""

    def wrapped(name: str | None) -> None:
        if not name:
            raise InputError("choose a run first")
        function(name)

    return wrapped


def _component(key: str, value: Any) -> Any:
    """Return the update of a component."""
    if key in ("start", "stop", "resume", "export"):
        return gr.Button(interactive=value)
    if key in ("losses", "rate"):
        rows = [(step, number, curve) for curve, points in value.items() for step, number in points]
        # The plot keeps the names that it has when it is drawn first.
        rows += [(rows[0][0], math.nan, curve) for curve in _COLOURS if rows and curve not in value and key == "losses"]
        return pd.DataFrame(rows, columns=["step", "value", "curve"]) if rows else None
    return value
