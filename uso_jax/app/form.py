# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The input controls of the page: prompt, references, and the controls of generation options.

Every option of `GenerationOptions` has a control or is listed in `WITHOUT_CONTROL` (tests/inference/test_options.py).
"""

import html
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from uso_jax.app.uploads import ImageBox
from uso_jax.inference.about import About
from uso_jax.inference.options import SPECS, GenerationOptions

# Rarely changed; the command line and Python have them.
WITHOUT_CONTROL = (
    "shift", "pe", "style_fit", "isolated", "guidance_steps", "outpaint", "upscale", "upscale_strength", "variation",
    "variation_seed", "step_cache", "solver",
)  # fmt: skip
# The three strengths of style inputs, which together are the option style_strength.
STYLE_STRENGTHS = ("style_strength", "extra_strength", "saved_strength")
MAX_IMAGES = 8
MAX_PROMPT = 4000  # characters; the longest text encoder reads 512 tokens, some 2500 characters


class Form:
    """The input controls, laid out in the current Blocks.

    Attributes:
      controls: components by name, in the order of their creation. Those of options have the option's name.
      submit: the button that starts generation.
      stop: the button that ends it.
    """

    def __init__(self, about: About, saved_styles: Sequence[str]):
        self.controls: dict[str, gr.components.Component] = {}
        self._about, self._side = about, about.pixels_per_token
        self._add("prompt", gr.Textbox(
            label="Prompt", lines=2, max_length=MAX_PROMPT, placeholder="Describe the image", elem_id="prompt"
        ))  # fmt: skip
        with gr.Row():
            self._add_reference("content", "Content image")
            self._add_reference("style", "Style image")
            self._add_reference("extra", "Extra style image")
        with gr.Row():
            self._add("saved", gr.Dropdown(
                saved_styles, multiselect=True, label="Saved styles", elem_id="saved", scale=2
            ))  # fmt: skip
            self._add_strength("saved")
        with gr.Row():
            self._add_size("width")
            self._add_size("height")
        with gr.Row(equal_height=True):
            self._add("keep_size", gr.Checkbox(
                label="Keep input size", info="Use the shape of the content image, to edit only its style", scale=2
            ))  # fmt: skip
            self._add("seed", gr.Number(-1, label="Seed (-1: random)", precision=0, elem_id="seed"))
        with gr.Row():
            self.submit = gr.Button("Generate", variant="primary", elem_id="generate", scale=4)
            self.stop = gr.Button("Stop", elem_id="stop", min_width=80)
        with gr.Accordion("Edit an image", open=False):
            self._add_edit()
        with gr.Accordion("Regions of the styles", open=False):
            self._add_regions()
        with gr.Accordion("Advanced options", open=False):
            self._add_advanced()

    def _add(self, name: str, control: gr.components.Component) -> None:
        control.preprocess = named(control.label, control.preprocess)
        self.controls[name] = control

    def _add_reference(self, name: str, label: str) -> None:
        with gr.Column(min_width=150):
            self._add(name, self._image_box(name, label))
            self._add_strength(name)

    def _add_strength(self, name: str) -> None:
        self._add(f"{name}_strength", gr.Slider(
            0, 3, 1, step=0.05, label="Strength", buttons=[], elem_id=f"{name}_strength", elem_classes="strength"
        ))  # fmt: skip

    def _add_size(self, name: str) -> None:
        default, side = getattr(self._about, name), self._side
        low, high = (max(length // side, 1) * side for length in (default // 2, default * 3 // 2))
        self._add(name, gr.Slider(
            low, high, default, step=side, precision=0, label=name.capitalize(), elem_id=name
        ))  # fmt: skip

    def _add_edit(self) -> None:
        with gr.Row():
            self._add("image", self._image_box("image", "Image to edit"))
            self._add("mask", self._image_box("mask", "Mask: white is drawn anew, black keeps its pixels"))
        default = GenerationOptions.strength
        self._add("strength", gr.Slider(
            0, 1, default, step=0.05, label="Strength of the edit", elem_id="strength",
            info="0 keeps the image, 1 starts from noise. The result has the image's size",
        ))  # fmt: skip

    def _add_regions(self) -> None:
        gr.Markdown("A mask is white where the style counts. Without one, and for saved styles, that is everywhere.")
        with gr.Row():
            self._add("style_mask", self._image_box("style_mask", "Mask of the style image"))
            self._add("extra_mask", self._image_box("extra_mask", "Mask of the extra style image"))

    def _image_box(self, name: str, label: str) -> ImageBox:
        return ImageBox(label=label, sources=["upload", "clipboard"], height=230, buttons=[], elem_id=name)

    def _add_advanced(self) -> None:
        defaults, side = self._about, self._side
        embeds_guidance, has_second_pass = defaults.embeds_guidance, defaults.classifier_free
        self._add("negative_prompt", gr.Textbox(
            "", label="Negative prompt", max_length=MAX_PROMPT, visible=has_second_pass or embeds_guidance,
            elem_id="negative_prompt",
            info=f"What {'guidance' if has_second_pass else 'true guidance'} moves away from; without effect at 1",
        ))  # fmt: skip
        self._add("true_guidance", gr.Slider(
            1.0, 10.0, 1.0, step=0.1, label="True guidance", visible=embeds_guidance and not has_second_pass,
            info="Scale of a second pass with the negative prompt, which doubles the time; 1: none",
        ))  # fmt: skip
        with gr.Row():
            self._add("num_steps", gr.Slider(
                1, max(50, defaults.num_steps), defaults.num_steps, step=1, precision=0, label="Number of steps"
            ))  # fmt: skip
            self._add("guidance", gr.Slider(
                1.0, max(5.0, defaults.guidance), defaults.guidance, step=0.1, label="Guidance",
                visible=embeds_guidance or has_second_pass,
            ))  # fmt: skip
        with gr.Row():
            self._add("content_ref", gr.Slider(
                side, 2 * defaults.content_ref, defaults.content_ref, step=side, precision=0,
                label="Content reference size",
            ))  # fmt: skip
            self._add("count", gr.Slider(
                1, MAX_IMAGES, 1, step=1, precision=0, label="Images", info="With consecutive seeds"
            ))  # fmt: skip
        self._add("reference_mode", gr.Radio(
            [("As displayed", "displayed"), ("As upstream", "upstream")], value="displayed", label="Reading of images",
            info="Upstream ignores EXIF orientation, transparency and colour profiles, and rounds pixels down",
            elem_id="reference_mode",
        ))  # fmt: skip


def named(label: str, preprocess: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wrap a control's reading of a value: an error is a sentence that names the control."""

    def read(value: Any) -> Any:
        try:
            return preprocess(value)
        except gr.Error as error:
            message = html.escape(error.message, quote=False)
            raise gr.Error(f"{label}: {message}", print_exception=False) from error
        except Exception as error:  # gradio's components fail in many ways on values of other types
            shown = html.escape(repr(value)[:60], quote=False)
            raise gr.Error(f"{label}: {shown} is not a value that it takes", print_exception=False) from error

    return read


def read_options(values: Mapping[str, Any], style_strength: Sequence[float]) -> GenerationOptions:
    """Return the options that the controls hold.

    Args:
      values: of the controls, by name.
      style_strength: one per style, in order.
    """
    options = {name: values[name] for name in SPECS if name in values and name not in STYLE_STRENGTHS}
    if options["seed"] is None or options["seed"] < 0:
        options["seed"] = secrets.randbelow(2**31)
    return GenerationOptions(**options, style_strength=style_strength)
