# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The page on which a person chooses the better of two images of a run's roll-outs (uso_jax.preferences).

Every choice is on disk before the next pair is shown. A browser sends only which button was pressed, and for which
pair: the images are those that the server has chosen, and a choice for a pair that is no longer shown, as by a second
press of a key, is left out.
"""

import hashlib
import html
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from uso_jax.app.actions import show_errors
from uso_jax.common.errors import InputError
from uso_jax.data import rollout_store
from uso_jax.data.storage.places import Place
from uso_jax.preferences.pairs import Pair, next_pair
from uso_jax.preferences.verdicts import Better, Verdict, Verdicts

BUTTONS: dict[Better, str] = {"left": "Left is better (1)", "neither": "Cannot say (2)", "right": "Right is better (3)"}
_SMALL = 512  # pixels a side to which smaller images are enlarged
_ABOUT = """
Which image is the better answer to the request above it? Judge subject, style, prompt and flaws. Choices are kept as
you make them, and several people may judge at once.
"""
_KEYS = """() => document.addEventListener("keydown", (event) => {
  const name = {1: "prefer_left", 2: "prefer_neither", 3: "prefer_right", u: "prefer_undo"}[event.key];
  const typing = event.target.closest("input, textarea");
  if (name && !typing && !event.repeat && !event.ctrlKey && !event.metaKey && !event.altKey)
    document.getElementById(name)?.click();
})"""


@dataclass(frozen=True)
class Judged:
    """What a session has: the pair that it sees, and its choices, oldest first, which can be taken back."""

    shown: Pair | None = None
    choices: tuple[tuple[Verdict, Pair], ...] = ()


class Comparisons:
    """The pairs of a run, and the choices between them.

    Args:
      workdir: of a run with roll-outs.

    Raises:
      InputError: it has no images to compare.
    """

    def __init__(self, workdir: pathlib.Path):
        self.workdir, self.verdicts = workdir, Verdicts(workdir)
        if not rollout_store.groups(workdir / "rollouts"):
            raise InputError(
                f"{workdir} has no roll-outs to compare; name the --workdir of a run whose policy keeps its images"
                " (docs/policy.md)"
            )
        self.verdicts.read()

    def next(self, seed: str, choices: tuple = ()) -> Judged:
        """Return a session's state with the next pair that nobody has judged, or with none if all are."""
        judged = {verdict.pair for verdict in self.verdicts.read()}
        return Judged(next_pair(rollout_store.groups(self.workdir / "rollouts"), judged, seed), choices)

    def choose(self, state: Judged, better: Better, seed: str) -> Judged:
        """Keep a choice between the images that are shown, and return the state with the next pair."""
        pair = state.shown
        if pair is None:
            return self.next(seed, state.choices)
        verdict = self.verdicts.add(pair.left, pair.right, better)
        return self.next(seed, (*state.choices, (verdict, pair)))

    def undo(self, state: Judged) -> Judged:
        """Take the session's last choice back, and show its pair again."""
        if not state.choices:
            raise InputError("there is no choice of this page to take back")
        *rest, (verdict, pair) = state.choices
        self.verdicts.undo(verdict)
        return Judged(pair, tuple(rest))


class PreferencePage:
    """The part of the page for preferences, laid out in the current Blocks.

    Args:
      comparisons: the pairs.
      images: folder of files that the page may show.
      page: the Blocks.
    """

    def __init__(self, comparisons: Comparisons, images: pathlib.Path, page: gr.Blocks):
        self.comparisons, self.images = comparisons, images
        gr.Markdown(_ABOUT, elem_id="prefer_about")
        box = lambda name, height, title="": gr.Image(
            label=title, show_label=bool(title), height=height, min_width=120, interactive=False, buttons=[],
            elem_id=f"prefer_image_{name}",
        )  # fmt: skip
        with gr.Row(elem_id="prefer_request"):
            self.content, self.style = box("content", 170, "Content"), box("style", 170, "Style")
            self.prompt = gr.Textbox(
                label="Prompt", interactive=False, lines=1, max_lines=4, min_width=240, elem_id="prefer_prompt", scale=2
            )
        with gr.Row(elem_id="prefer_pair"):
            self.left, self.right = box("left", 420), box("right", 420)
        with gr.Row(elem_id="prefer_buttons"):
            self.buttons = {
                better: gr.Button(
                    title, variant="secondary" if better == "neither" else "primary", interactive=False, min_width=80,
                    elem_id=f"prefer_{better}",
                )
                for better, title in BUTTONS.items()
            }  # fmt: skip
        with gr.Row():
            self.status = gr.HTML(elem_id="prefer_status", padding=False)
            self.undo = gr.Button(
                "Undo (U)", size="sm", interactive=False, min_width=80, scale=0, elem_id="prefer_undo"
            )
        self.pair = gr.Textbox(visible=False, label="Pair")
        self._connect(page)

    def _connect(self, page: gr.Blocks) -> None:
        state = gr.State(Judged())
        parts = [state, self.pair, self.content, self.style, self.prompt, self.left, self.right, self.status]
        parts += [*self.buttons.values(), self.undo]
        # One at a time: a second press waits for the first, and finds that its pair is no longer shown.
        one = dict(
            concurrency_id="preferences", concurrency_limit=1, show_progress="hidden", api_visibility="private"
        )  # fmt: skip
        for better, button in self.buttons.items():
            button.click(show_errors(self._chooser(better)), [state, self.pair], parts, **one)
        self.undo.click(show_errors(self._undo), [state, self.pair], parts, **one)
        page.load(show_errors(self._begin), None, parts, **one)
        page.load(None, None, None, js=_KEYS, api_visibility="private")

    def _chooser(self, better: Better) -> Callable[..., list[Any]]:
        def choose(state: Judged, pair: str, request: gr.Request) -> list[Any]:
            if pair != _name(state.shown):
                return self._parts(state)
            return self._parts(self.comparisons.choose(state, better, request.session_hash or ""))

        return choose

    def _undo(self, state: Judged, pair: str) -> list[Any]:
        return self._parts(self.comparisons.undo(state) if pair == _name(state.shown) else state)

    def _begin(self, request: gr.Request) -> list[Any]:
        return self._parts(self.comparisons.next(request.session_hash or ""))

    def _parts(self, state: Judged) -> list[Any]:
        """Return the values of all components for what a session sees."""
        pair = state.shown
        buttons = [gr.Button(interactive=pair is not None)] * len(self.buttons) + [
            gr.Button(interactive=bool(state.choices))
        ]
        kept = len(self.comparisons.verdicts.read())
        told = f"Pairs judged: {kept}, on this page: {len(state.choices)}."
        if pair is None:
            status = f"<p>{told} <b>All pairs are judged.</b> A run that goes on makes more.</p>"
            return [state, "", None, None, "", None, None, status, *buttons]
        group, image = pair.group, lambda key: self._shown(key, group.images[key])
        content = None if group.content is None else self._shown(f"{group.name}/content", group.content)
        style = self._shown(f"{group.name}/style", *group.styles) if group.styles else None
        shown = [content, style, group.prompt or "(no prompt: the layout stays)", image(pair.left), image(pair.right)]
        status = f"<p>{told} Images of {html.escape(group.name)}.</p>"
        return [state, _name(pair), *shown, status, *buttons]

    def _shown(self, name: str, *places: Place) -> str:
        """Write images, side by side, to where the page may show them from; small ones enlarged without smoothing."""
        # A round that is made again has other images under the same names.
        written = pathlib.Path(places[0].file).stat().st_mtime_ns
        path = self.images / f"{hashlib.sha256(f'{name} {written}'.encode()).hexdigest()[:24]}.png"
        if not path.exists():
            image = Image.fromarray(np.concatenate([place.decode() for place in places], axis=1))
            factor = max(_SMALL // max(image.size), 1)
            image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(path)
        return str(path)


def _name(pair: Pair | None) -> str:
    return "" if pair is None else f"{pair.left} {pair.right}"
