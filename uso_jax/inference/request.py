# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One image that is wanted: every value checked, every reference read, and what had to be changed said in `notes`."""

import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from uso_jax import flow
from uso_jax.common.errors import InputError
from uso_jax.images.decode import MAX_PIXELS, Pixels
from uso_jax.images.files import ImageLike, Reference
from uso_jax.inference import styles as style_files
from uso_jax.inference.styles import StyleEmbedding
from uso_jax.models.uso import USO
from uso_jax.weights.pretrained import Pretrained

StyleFit = ("squash", "crop")
StyleSource = ImageLike | Reference | StyleEmbedding


@dataclass(frozen=True, eq=False)
class Request:
    """Everything that decides an image, apart from the weights."""

    prompt: str
    references: tuple[Reference, ...]  # content, in order
    contents: tuple[Pixels, ...]  # the same, resized and cut
    styles: tuple[Reference | StyleEmbedding, ...]
    height: int
    width: int
    num_steps: int
    guidance: float
    seed: int
    shift: str
    pe: str
    content_ref: int
    style_fit: str
    content_strength: float
    style_strength: tuple[float, ...]  # one a style
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Give what repeats the request, in JSON terms: the arguments of `make_request`."""
        return {
            "prompt": self.prompt,
            "contents": [reference.record() for reference in self.references],
            "styles": [style.record() for style in self.styles],
            "style_strength": list(self.style_strength),
            **{
                name: getattr(self, name)
                for name in (
                    "width", "height", "num_steps", "guidance", "seed", "shift", "pe", "content_ref", "style_fit",
                    "content_strength",
                )
            },
        }  # fmt: skip

    def identity(self, context: Mapping[str, Any]) -> str:
        """Name the image made in this context, shortly; of references, the content counts and not the path."""
        record = self.record()
        record |= {name: [item["sha256"] for item in record[name]] for name in ("contents", "styles")}
        text = json.dumps([record, dict(context)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


def make_request(
    bundle: Pretrained,
    system: USO,
    *,
    prompt: str = "",
    contents: Sequence[ImageLike | Reference] | None = None,
    styles: Sequence[StyleSource] | StyleSource | None = None,
    width: int | None = None,
    height: int | None = None,
    keep_size: bool = False,
    num_steps: int | None = None,
    guidance: float | None = None,
    seed: int = 3407,
    shift: str | None = None,
    pe: str = "d",
    content_ref: int | None = None,
    content_strength: float = 1.0,
    style_strength: float | Sequence[float] = 1.0,
    style_fit: str = "squash",
) -> Request:
    """Check one image's arguments and read its references; the arguments are those of `USOPipeline`.

    Raises:
      InputError: a value makes no sense for these weights; the message names it.
    """
    defaults, side, notes = bundle.defaults, system.config.pixels_per_token, []
    num_steps = defaults.num_steps if num_steps is None else num_steps
    content_ref = defaults.content_ref if content_ref is None else content_ref
    shift = defaults.shift if shift is None else shift
    if not isinstance(prompt, str):
        raise InputError(f"a prompt is text, not {type(prompt).__name__}")
    contents, styles = _several(contents), _several(styles)
    if not prompt.strip() and not contents and not styles:
        raise InputError("there is nothing to draw: give a prompt, a content image or a style image")
    _integer("num_steps", num_steps, 1, 1000)
    _integer("seed", seed, 0, 2**32 - 1)
    _integer("content_ref", content_ref, side, 8192)
    for name, value, known in (
        ("shift", shift, get_args(flow.Shift)),
        ("pe", pe, get_args(flow.OffsetMode)),
        ("style_fit", style_fit, StyleFit),
    ):
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}, not {value!r}")
    if guidance not in (None, defaults.guidance) and not system.config.transformer.guidance_embed:
        notes.append("guidance changes nothing: these weights were not made for it")
    guidance = _number("guidance", defaults.guidance if guidance is None else guidance)

    references = tuple(map(Reference.of, contents))
    images = tuple(reference.content(content_ref, side) for reference in references)
    styles = tuple(map(_style, styles))
    if styles and system.config.transformer.projector is None:
        raise InputError(f"{bundle.directory} has no projector, so it cannot follow styles; import one, or drop them")
    strengths = style_strength if isinstance(style_strength, Sequence) else [style_strength] * len(styles)
    strengths = tuple(_number("style_strength", strength) for strength in strengths)
    if len(strengths) != len(styles):
        raise InputError(f"style_strength has {len(strengths)} numbers for {len(styles)} styles")

    if keep_size:
        if not images:
            raise InputError("keeping the content's size needs a content image")
        scale = defaults.width / content_ref
        height, width = (int(length * scale) for length in images[0].shape[:2])
    size = {}
    for name, value in (("width", width), ("height", height)):
        value = getattr(defaults, name) if value is None else value
        _integer(name, value, side, MAX_PIXELS // side)
        size[name] = value // side * side
        if size[name] != value:
            notes.append(f"{name} {value} is not a multiple of {side}: {size[name]} is used")
    if size["width"] * size["height"] > MAX_PIXELS:
        raise InputError(f"{size['width']} x {size['height']} pixels are too many; the limit is {MAX_PIXELS}")
    if system.config.text.is_cut(prompt):
        notes.append(f"the prompt is longer than {system.config.text.num_tokens} tokens: its end is left out")
    notes += [note for reference in (*references, *styles) for note in getattr(reference, "notes", ())]
    return Request(
        prompt=prompt,
        references=references,
        contents=images,
        styles=styles,
        num_steps=num_steps,
        guidance=guidance,
        seed=seed,
        shift=shift,
        pe=pe,
        content_ref=content_ref,
        style_fit=style_fit,
        content_strength=_number("content_strength", content_strength),
        style_strength=strengths,
        notes=tuple(notes),
        **size,
    )


def from_record(record: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Give the arguments of `make_request` that repeat a record; its references must be the files that they were.

    Paths are tried as they were given, then from `folder`, where the image lies.
    """
    try:
        arguments = dict(record["request"])
        for name in ("contents", "styles"):
            arguments[name] = [_found(item["path"], item["sha256"], folder) for item in arguments[name]]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the image's record is damaged ({error})") from error
    return arguments


def _found(path: str | None, sha256: str, folder: pathlib.Path) -> Reference | StyleEmbedding:
    if path is None:
        raise InputError("the image was made with a reference that was not a file: it cannot be repeated")
    if style_files.is_style(path):
        reference = style_files.read_style(path if style_files.style_path(path).is_file() else folder / path)
    else:
        reference = Reference.of(path if pathlib.Path(path).is_file() else folder / path)
    if reference.sha256 != sha256:
        raise InputError(f"{path} is no longer the file that the image was made with; bring that one back")
    return reference


def _style(source: StyleSource) -> Reference | StyleEmbedding:
    if isinstance(source, StyleEmbedding):
        return source
    if isinstance(source, str | pathlib.Path) and style_files.is_style(source):
        return style_files.read_style(source)
    return Reference.of(source)


def _several(value: Any) -> tuple[Any, ...]:
    return () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)


def _integer(name: str, value: Any, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise InputError(f"{name} must be a whole number from {low} to {high}, not {value!r}")


def _number(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise InputError(f"{name} must be a number that is not negative, not {value!r}")
    return float(value)
