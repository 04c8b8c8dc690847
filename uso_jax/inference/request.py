# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A request: one image to generate, with options checked and references read.

`notes` holds one sentence for each value that was changed, such as a size that was rounded.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.images.decode import MAX_PIXELS, Pixels, ReferenceMode
from uso_jax.images.reference import ImageLike, Reference
from uso_jax.inference import styles as style_files
from uso_jax.inference.canvas import Canvas, check_same_size, read_mask, skipped_steps
from uso_jax.inference.option_kinds import whole
from uso_jax.inference.options import MAX_CONTENT_SIDE, GenerationOptions
from uso_jax.inference.regions import Masks, read_masks
from uso_jax.inference.styles import StyleEmbedding
from uso_jax.models.uso import USO
from uso_jax.weights.pretrained import Pretrained

ContentLike = ImageLike | Reference
StyleLike = ImageLike | Reference | StyleEmbedding
IMAGES = ("image", "mask", "content_mask")  # arguments that are one image each, besides the references
PROMPT_LIMIT = 1 << 16  # characters; encoders read at most 512 tokens


@dataclass(frozen=True, eq=False)
class Request:
    """Everything that decides an image, apart from the weights.

    Attributes:
      prompt: text; may be empty if there is a reference.
      references: content images in order.
      contents: the same images, resized and cropped.
      styles: style images and style files in order. Without a projector, style images are among the references.
      canvas: the image to edit; None: the image is drawn from noise.
      content_mask: white where the first content image counts; None: everywhere.
      counted: its tokens that count; None: all.
      style_masks: of every style, also of those among the references; empty: there are none.
      options: without None; sizes are whole tokens, and style_strength has one number per style.
      notes: what was changed.
    """

    prompt: str
    references: tuple[Reference, ...]
    contents: tuple[Pixels, ...]
    styles: tuple[Reference | StyleEmbedding, ...]
    options: GenerationOptions
    notes: tuple[str, ...] = ()
    canvas: Canvas | None = None
    content_mask: Reference | None = None
    counted: Bool[np.ndarray, " r"] | None = None
    style_masks: Masks = ()

    @property
    def plain_styles(self) -> int:
        """How many of the references, at their end, are styles of which one or more have a mask."""
        return max(len(self.style_masks) - len(self.styles), 0)

    def record(self) -> dict[str, Any]:
        """Return what repeats the request, in JSON terms: the arguments of `make_request`, options by name."""
        options, plain = self.options.record(), self.plain_styles
        contents, styles = self.references, self.styles
        if plain:  # they must be styles again, for their masks
            contents, styles = contents[:-plain], contents[-plain:]
            options["style_strength"] = [1.0] * plain
        masks = [None if mask is None else mask.record() for mask in self.style_masks]
        return {
            "prompt": self.prompt,
            "contents": [reference.record() for reference in contents],
            "styles": [style.record() for style in styles],
            **({} if self.canvas is None else self.canvas.record()),
            **({} if self.content_mask is None else {"content_mask": self.content_mask.record()}),
            **({"style_masks": masks} if masks else {}),
            **options,
        }

    def identity(self, context: Mapping[str, Any]) -> str:
        """Return a short hash of the request and its context. References count by their bytes, not by their path."""
        record = self.record()
        several = {"contents", "styles", "style_masks"} & record.keys()
        record |= {name: [item and item["sha256"] for item in record[name]] for name in several}
        record |= {name: record[name]["sha256"] for name in IMAGES if name in record}
        text = json.dumps([record, dict(context)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def num_steps(self) -> int:
        """Sampling steps that are run: an image to edit leaves out the first ones."""
        skipped = 0 if self.canvas is None else skipped_steps(self.options.num_steps, self.options.strength)
        return self.options.num_steps - skipped

    @property
    def upscale_steps(self) -> int:
        """Sampling steps of the enlarged image."""
        return self.options.num_steps - skipped_steps(self.options.num_steps, self.options.upscale_strength)

    @property
    def has_strengths(self) -> bool:
        """Whether a strength differs from 1, so that attention needs a bias."""
        content_strength = self.options.content_strength if self.contents else 1
        return any(strength != 1 for strength in (*self.options.style_strength, content_strength))


_FAR = 16  # times the pixels that weights are trained for, beyond which there is a note
_FAR_EDITED = 4  # the same for an image to edit, whose size nobody typed


def make_request(
    pretrained: Pretrained,
    system: USO,
    prompt: str = "",
    *,
    contents: Sequence[ContentLike] | ContentLike | None = None,
    styles: Sequence[StyleLike] | StyleLike | None = None,
    image: ContentLike | None = None,
    mask: ContentLike | None = None,
    content_mask: ContentLike | None = None,
    style_masks: Sequence[ContentLike | None] | None = None,
    options: GenerationOptions | None = None,
) -> Request:
    """Read the references of one image and complete its options by the defaults of the weights directory.

    Raises:
      InputError: a value makes no sense for these weights; the message names it.
    """
    defaults, side = pretrained.defaults, system.config.pixels_per_token
    options = options or GenerationOptions()
    if not isinstance(prompt, str):
        raise InputError(f"the prompt must be text, not {type(prompt).__name__}")
    prompt = untrusted.text(prompt, "the prompt", remedy="type it again", limit=PROMPT_LIMIT)
    contents, styles = _several(contents), _several(styles)
    if not prompt.strip() and not contents and not styles and image is None:
        raise InputError("nothing to generate: pass a prompt, a content image, a style image or an image to edit")
    limit = dict(remedy="type it again", limit=PROMPT_LIMIT)
    options = dataclasses.replace(
        _effective(options, image is not None),
        negative_prompt=untrusted.text(options.negative_prompt, "negative_prompt", **limit),
    )
    notes = _ineffective(options, pretrained, system)
    asked = options.width, options.height
    options = options.with_defaults(defaults)
    whole("content_ref", options.content_ref, side, MAX_CONTENT_SIDE)
    if options.true_guidance != 1 and options.isolated != "none" and not system.classifier_free:
        raise InputError("true_guidance does not go with isolated references: their keys hold the prompt's vector")

    read = lambda source: Reference.of(source, mode=options.reference_mode)
    references = tuple(map(read, contents))
    content_mask = None if content_mask is None else read_mask(content_mask, "content_mask")
    counted = None if content_mask is None else _counted(content_mask, references, options.content_ref, side)
    styles = tuple(_style(style, options.reference_mode) for style in styles)
    masks = read_masks(style_masks, len(styles))
    strengths = options.style_strength
    strengths = strengths if isinstance(strengths, tuple) else (strengths,) * len(styles)
    if len(strengths) != len(styles):
        raise InputError(f"style_strength has {len(strengths)} numbers for {len(styles)} styles")
    if styles and system.config.transformer.projector is None:
        _check_plain(styles, pretrained, system)
        notes.append(
            "these weights have no style projector, so style images are plain references after the content images"
            + ("; style_strength has no effect on them" if any(strength != 1 for strength in strengths) else "")
        )
        references, styles, strengths = (*references, *styles), (), ()
    options = dataclasses.replace(options, style_strength=strengths)
    images = tuple(reference.content(options.content_ref, side) for reference in references)

    if options.keep_size:
        if not contents or image is not None:
            raise InputError(
                "keep_size (--instruct_edit) needs a content image" if image is None else
                "keep_size (--instruct_edit) does not go with an image to edit, which keeps its size anyway"
            )  # fmt: skip
        scale = defaults.width / options.content_ref
        height, width = (int(length * scale) for length in images[0].shape[:2])
        options = dataclasses.replace(options, width=width, height=height, keep_size=False)
    canvas = None
    if image is not None:
        drawn = None if mask is None else read_mask(mask)
        canvas, cropped = Canvas.fit(read(image), drawn, options.outpaint, asked, side)
        notes += cropped
        height, width = canvas.pixels.shape[:2]
        options = dataclasses.replace(options, width=width, height=height)
    elif mask is not None or any(options.outpaint):
        raise InputError(f"{'outpaint' if mask is None else 'a mask'} needs an image to edit; pass image (--image)")
    options, changed = options.rounded(side)
    notes += changed
    if (enlarged := round(options.width * options.height * options.upscale**2)) > MAX_PIXELS:
        raise InputError(f"upscale would make {enlarged} pixels; choose at most {MAX_PIXELS}")
    far = _FAR if canvas is None else _FAR_EDITED
    if options.width * options.height > far * defaults.width * defaults.height:
        notes.append(
            f"{options.width} x {options.height} is far beyond the {defaults.width} x {defaults.height} pixels that"
            " these weights are trained for: compiling may take minutes, and the image will be poor"
        )
    most = system.family.reference_pixels(len(images))
    if images and (largest := max(image.shape[0] * image.shape[1] for image in images)) > most:
        notes.append(
            f"a content image has {largest} pixels, more than the {most} that this base model is made for with"
            f" {len(images)} of them: the image may be poor, and slow; lower content_ref"
        )
    if system.config.text.is_cut(prompt):
        notes.append(f"the prompt is longer than {system.config.text.num_tokens} tokens and was truncated")
    read_too = (canvas and canvas.image, canvas and canvas.mask, content_mask, *masks)
    images_read = [one for one in read_too if one is not None]
    notes += [note for one in (*references, *styles, *images_read) for note in getattr(one, "notes", ())]
    return Request(prompt, references, images, styles, options, tuple(notes), canvas, content_mask, counted, masks)


def _counted(mask: Reference, references: Sequence[Reference], long_side: int, side: int) -> Bool[np.ndarray, " r"]:
    """Return the tokens of the first content image that its mask touches."""
    if not references:
        raise InputError("content_mask needs a content image")
    check_same_size(mask, references[0], "content_mask and content image")
    white = mask.content(long_side, side).max(axis=-1) > 127
    rows, columns = (length // side for length in white.shape)
    counted = white.reshape(rows, side, columns, side).any(axis=(1, 3)).reshape(-1)
    if not counted.any():
        raise InputError("content_mask is black everywhere, so nothing of the content image would count")
    return counted


def _effective(options: GenerationOptions, edits: bool) -> GenerationOptions:
    """Return the options without those that change nothing, so that they change no identity and part no batch."""
    idle = {
        "strength": not edits,
        "upscale_strength": options.upscale == 1,
        "variation_seed": options.variation == 0,
    }
    default = GenerationOptions.__dataclass_fields__
    return dataclasses.replace(options, **{name: default[name].default for name, is_idle in idle.items() if is_idle})


def _ineffective(options: GenerationOptions, pretrained: Pretrained, system: USO) -> list[str]:
    """Return a note for each option that was set but has no effect with these weights."""
    notes = []
    if options.negative_prompt and not system.classifier_free and options.true_guidance == 1:
        notes.append("negative_prompt has no effect: these weights embed the guidance scale; set true_guidance")
    if options.true_guidance != 1 and system.classifier_free:
        notes.append("true_guidance has no effect: guidance is the scale of a second pass already")
    guided = system.config.transformer.guidance_embed or system.classifier_free
    if options.guidance not in (None, pretrained.defaults.guidance) and not guided:
        notes.append("guidance has no effect: these weights were trained without guidance")
    return notes


def _check_plain(styles: Sequence[Reference | StyleEmbedding], pretrained: Pretrained, system: USO) -> None:
    """Raise InputError if weights without a projector cannot take styles as plain references."""
    if not system.family.takes_references:
        raise InputError(
            f"{pretrained.directory} has no projector, so it cannot use styles; import one, or pass no style"
        )
    for style in styles:
        if isinstance(style, StyleEmbedding):
            raise InputError(
                f"{pretrained.directory} has no projector, so it cannot use the style {style.path or 'embedding'};"
                " import one, or pass the style's images"
            )


def _style(source: StyleLike, mode: ReferenceMode) -> Reference | StyleEmbedding:
    if isinstance(source, StyleEmbedding):
        return source
    if isinstance(source, str | pathlib.Path) and style_files.is_style(source):
        return style_files.read_style(source)
    return Reference.of(source, mode=mode)


def _several(value: Any) -> tuple[Any, ...]:
    return () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
