# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the page's buttons do, and how errors and notes reach the user."""

import dataclasses
import functools
import html
import pathlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from uso_jax.app.form import MAX_PROMPT, read_options
from uso_jax.app.painter import Painter, Styles
from uso_jax.app.uploads import Upload
from uso_jax.common.errors import InputError
from uso_jax.images import files
from uso_jax.images.reference import Reference
from uso_jax.inference.about import About
from uso_jax.inference.sampler import Progress

Made = list[tuple[str, dict]]  # files of a session's images and their records, newest first
_KEPT = 40  # images of a session that its gallery shows
MAX_STYLES = 8  # saved styles of an image


def show_errors(function: Callable) -> Callable:
    """Wrap an event handler: the page shows the message of an `InputError`, and the server goes on."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except InputError as error:
            raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from error

    return wrapped


class Actions:
    """Generation, the gallery and the style library.

    Args:
      pipe: draws the images.
      styles: saved styles.
      folder: where generated images are written.
    """

    def __init__(self, pipe: Painter, styles: Styles, folder: pathlib.Path):
        self.pipe, self.styles, self.folder = pipe, styles, folder
        self._stops: dict[str, threading.Event] = {}  # of the sessions that generate

    def stop(self, session: str) -> None:
        """End what a session generates, after the sampling step under way. Nothing happens if it generates nothing."""
        if stop := self._stops.get(session):
            stop.set()

    def generate(
        self, values: Mapping[str, Any], made: Made, progress: gr.Progress, session: str = ""
    ) -> tuple[Any, ...]:
        """Generate images. Return the gallery, the first record and file, and all images of the session.

        Args:
          values: of the form's controls, by name.
          made: images of the session so far.
          progress: the page's progress bar.
          session: name of the session, for `stop`.

        Raises:
          InputError: a value is not allowed, or the session was stopped.
        """
        stop = self._stops[session] = threading.Event()
        try:
            return self._generate(values, made, _reporter(progress, stop))
        finally:
            self._stops.pop(session, None)

    def _generate(self, values: Mapping[str, Any], made: Made, report: Progress) -> tuple[Any, ...]:
        report("Reading images", 0, 1)
        _check(values)
        uploads = {name: values[name] for name in ("style", "extra") if values[name]}
        saved = values["saved"] or ()
        strengths = [values[f"{name}_strength"] for name in uploads] + [values["saved_strength"]] * len(saved)
        options = read_options(values, strengths)
        content: Upload | None = values["content"]
        read = lambda upload: upload.read(options.reference_mode)
        references = dict(
            contents=[read(content)] if content else [],
            styles=[*map(read, uploads.values()), *map(self.styles.read, saved)],
        )
        if values["image"]:
            references["image"] = read(values["image"])
            size = _edited_size(references["image"], self.pipe.about)
            options = dataclasses.replace(options, **size)
        if values["mask"]:
            references["mask"] = values["mask"].mask()
        if masks := _style_masks(values):
            references["style_masks"] = masks
        requests = [
            self.pipe.request(
                values["prompt"] or "", **references, options=dataclasses.replace(options, seed=options.seed + i)
            )
            for i in range(values["count"])
        ]
        result = self.pipe.generate(requests, progress=report)
        for note in dict.fromkeys(note for record in result.records for note in record.get("notes", ())):
            gr.Info(html.escape(note, quote=False))
        new = []
        for request, image, record in zip(requests, result.images, result.records, strict=True):
            identity = request.identity({**self.pipe.context, "concat_refs": False})
            path = self.folder / f"{identity}.png"
            record = record | {"identity": identity, "concat_refs": False}
            files.write_image(path, image, record)
            new.append((str(path), record))
        made = (new + made)[:_KEPT]
        return _gallery(made), *self.show(made, 0), made

    def show(self, made: Made, index: int) -> tuple[dict, Any]:
        """Return the record of an image of the gallery, and its file as a download."""
        if type(index) is not int or not 0 <= index < len(made):
            raise InputError("this image is no longer in the gallery; reload the page")
        path, record = made[index]
        return record, gr.DownloadButton(value=path, interactive=True)

    def save_style(
        self, name: str, style: Upload | None, extra: Upload | None, chosen: Sequence[str] | None
    ) -> tuple[Any, str]:
        """Save the style images as one style of the library, and select it. Return the list and an empty name."""
        uploads = [upload for upload in (style, extra) if upload]
        if not uploads:
            raise InputError("there is no style to save: upload a style image first")
        name = (name or "").strip()
        encoded = self.pipe.encode_style([upload.read() for upload in uploads])
        self.styles.write(name, encoded)
        gr.Info(f"Saved style {name}")
        return gr.Dropdown(choices=self.styles.names(), value=[*(chosen or ()), name]), ""


def _style_masks(values: Mapping[str, Any]) -> list[Reference | None]:
    """Return the masks of the styles in their order; none at all if no style has one."""
    masks = {name: values[f"{name}_mask"] for name in ("style", "extra")}
    for name, shown in (("style", "style image"), ("extra", "extra style image")):
        if masks[name] and not values[name]:
            raise InputError(f"the mask of the {shown} needs that image; upload it, or remove the mask")
    if not any(masks.values()):
        return []
    own = [mask and mask.mask() for name, mask in masks.items() if values[name]]
    return [*own, *[None] * len(values["saved"] or ())]


def _edited_size(image: Reference, about: About) -> dict[str, int | None]:
    """Return the size of an edit: the image's, or that of the largest image that the sliders admit."""
    height, width = image.pixels.shape[:2]
    most = 2.25 * about.width * about.height
    scale = min(1.0, (most / (width * height)) ** 0.5)
    return {"height": None, "width": None if scale == 1 else int(width * scale)}


def _check(values: Mapping[str, Any]) -> None:
    """Raise an InputError for what the controls of a browser would not send."""
    if len(values["prompt"] or "") > MAX_PROMPT:
        raise InputError(f"the prompt has {len(values['prompt'])} characters; the limit is {MAX_PROMPT}")
    saved = values["saved"] or ()
    if not isinstance(saved, list | tuple) or len(saved) > MAX_STYLES or not all(type(one) is str for one in saved):
        raise InputError(f"saved styles are at most {MAX_STYLES} names; choose them from the list")


def _reporter(progress: gr.Progress, stop: threading.Event) -> Progress:
    """Return a progress callback of the pipeline that also shows seconds per step, and raises when it must stop."""
    started: float | None = None

    def report(phase: str, step: int, total: int) -> None:
        nonlocal started
        if stop.is_set():
            raise InputError("stopped")
        if phase == "Sampling" and step == 0:
            started = time.monotonic()
        rate = f", {(time.monotonic() - started) / step:.2g} s/step" if phase == "Sampling" and step else ""
        progress((step, total), desc=phase + rate, unit="steps")

    return report


def _gallery(made: Made) -> gr.Gallery:
    requests = ((path, record["request"]) for path, record in made)
    images = [(path, f"{one['prompt'] or '(no prompt)'} · seed {one['seed']}") for path, one in requests]
    return gr.Gallery(images, selected_index=0)
