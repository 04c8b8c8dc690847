# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Generation options: the one list of values that decide how an image is generated.

Every place that takes options derives them from this list or is tested against it (tests/inference/test_options.py):
the keywords of `USOPipeline.__call__`, command-line flags, keys of batch jobs, records in PNG files and the web app.

To add an option:
  1. Add a field to `GenerationOptions`, with its kind and its doc.
  2. Add the keyword to `USOPipeline.__call__`.
  3. Use it in `request`, `batch` or `sampler`.
  4. Add its control to `uso_jax.app.form`, or its name to `WITHOUT_CONTROL` there.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from uso_jax import flow
from uso_jax.common.errors import InputError
from uso_jax.images.decode import MAX_PIXELS, ReferenceMode
from uso_jax.inference.option_kinds import (
    BOOLEAN,
    FACTOR,
    INTERVAL,
    MARGINS,
    NUMBER,
    NUMBERS,
    SHARE,
    TEXT,
    Kind,
    Number,
    Whole,
    choice,
    whole,
    whole_number,
)
from uso_jax.weights.pretrained import Defaults

StyleFit = Literal["squash", "crop"]
MAX_STEPS, MAX_CONTENT_SIDE, MAX_SEED = 1000, 8192, 2**64 - 1


@dataclass(frozen=True)
class Spec:
    """The metadata of an option.

    Attributes:
      kind: which values it takes.
      doc: what it does, as shown in --help.
      flag: the command-line flag, without dashes; by default the option's name.
      record: whether records hold it: "always", "changed" (only if it is not the default, so that the identities of
        images made before the option existed stay the same), or "never" (other options hold its effect).
      one_per_batch: images that differ in it cannot share a batch.
    """

    kind: Kind
    doc: str
    flag: str | None = None
    record: Literal["always", "changed", "never"] = "changed"
    one_per_batch: bool = False


def _option(default: Any, kind: Kind, doc: str, **more: Any) -> Any:
    return dataclasses.field(default=default, metadata={"spec": Spec(kind, doc, **more)})


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How one image is generated, apart from its prompt and its references.

    None means the default of the weights directory (`uso_jax.weights.pretrained.Defaults`).

    Raises:
      InputError: a value is of the wrong type or out of range; the message names it.
    """

    width: Whole | None = _option(
        None, whole_number(1, MAX_PIXELS), "image width in pixels, rounded down to whole tokens",
        record="always", one_per_batch=True,
    )  # fmt: skip
    height: Whole | None = _option(
        None, whole_number(1, MAX_PIXELS), "image height in pixels, rounded down to whole tokens",
        record="always", one_per_batch=True,
    )  # fmt: skip
    keep_size: bool | np.bool_ = _option(
        False, BOOLEAN, "use the shape of the content image in place of width and height",
        flag="instruct_edit", record="never",
    )  # fmt: skip
    num_steps: Whole | None = _option(
        None, whole_number(1, MAX_STEPS), "sampling steps", record="always", one_per_batch=True
    )
    guidance: Number | None = _option(None, NUMBER, "guidance scale", record="always")
    seed: Whole = _option(
        3407, whole_number(0, MAX_SEED), "random seed; gives the same noise in any batch and on any mesh",
        record="always",
    )  # fmt: skip
    shift: str | None = _option(
        None, choice(*get_args(flow.Shift)), 'shift of the schedule; "flux" is ComfyUI\'s', record="always"
    )
    pe: str = _option(
        "d", choice(*get_args(flow.OffsetMode)), "position of the content tokens relative to the image's",
        record="always", one_per_batch=True,
    )  # fmt: skip
    content_ref: Whole | None = _option(
        None, whole_number(1, MAX_CONTENT_SIDE), "long side of content images, in pixels", record="always"
    )
    content_strength: Number = _option(
        1.0, NUMBER, "factor on the attention weights of content images; 0 equals no content image", record="always"
    )
    style_strength: Number | Sequence[Number] | np.ndarray = _option(
        1.0, NUMBERS, "factor on the attention weights of styles, one number or one per style; 0 equals no style",
        record="always",
    )  # fmt: skip
    style_fit: str = _option(
        "squash", choice(*get_args(StyleFit)), 'how style images become square; "crop" is ComfyUI\'s', record="always"
    )
    reference_mode: str = _option(
        "displayed", choice(*get_args(ReferenceMode)), 'how images are read and pixels rounded; "upstream" is'
        " bytedance/USO's: no EXIF orientation, transparency or colour profile, and pixels rounded down",
        one_per_batch=True,
    )  # fmt: skip
    negative_prompt: str = _option(
        "", TEXT, "what guidance by a second pass moves away from (FLUX.2 base models, or true_guidance)"
    )
    true_guidance: Number = _option(
        1.0, NUMBER, "scale of guidance by a second pass with the negative prompt, for models that embed their guidance"
        " (FLUX.1); 1: no second pass",
    )  # fmt: skip
    guidance_steps: Sequence[Number] | np.ndarray = _option(
        (0.0, 1.0), INTERVAL, "share of the schedule from which, and up to which, a second pass guides",
        one_per_batch=True,
    )  # fmt: skip
    isolated: str = _option(
        "none", choice(*get_args(flow.Isolated)),
        "references that attend to each other only, which is faster: content images, or all with styles",
        one_per_batch=True,
    )  # fmt: skip
    solver: str = _option(
        "euler", choice(*get_args(flow.Solver)),
        "how steps are taken: euler, or adams, which also uses the velocity of the step before",
        one_per_batch=True,
    )  # fmt: skip
    step_cache: Number = _option(
        0.0, NUMBER, "relative change of the first block's output below which a step reuses what the other blocks"
        " computed before (first-block cache); 0: all blocks run in every step",
    )  # fmt: skip

    strength: Number = _option(
        0.75, SHARE, "how much of the image to edit is drawn anew: 0 returns it, 1 starts from noise",
        one_per_batch=True,
    )  # fmt: skip
    outpaint: Whole | Sequence[Whole] | np.ndarray = _option(
        (0, 0, 0, 0), MARGINS, "pixels to draw around the image to edit: left, top, right, bottom; or one number"
    )
    upscale: Number = _option(
        1.0, FACTOR, "enlarge the image by this factor, and draw its details in overlapping tiles"
    )
    upscale_strength: Number = _option(0.35, SHARE, "how much of the enlarged image is drawn anew")
    variation: Number = _option(
        0.0, SHARE, "how far the noise is moved towards that of variation_seed; 1 is that seed's image"
    )
    variation_seed: Whole = _option(0, whole_number(0, MAX_SEED), "random seed of the variation")

    def __post_init__(self):
        for name, value in check_options({f.name: getattr(self, f.name) for f in dataclasses.fields(self)}).items():
            object.__setattr__(self, name, value)

    def with_defaults(self, defaults: Defaults) -> "GenerationOptions":
        """Replace each None by the default of a weights directory."""
        names = {field.name for field in dataclasses.fields(defaults)} & set(SPECS)
        missing = {name: getattr(defaults, name) for name in names if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)

    def rounded(self, pixels_per_token: int) -> tuple["GenerationOptions", list[str]]:
        """Round width and height down to whole tokens. Return the options, and a note for each size that changed.

        Raises:
          InputError: an image of this size would be too small or too large.
        """
        sizes, notes = {}, []
        for name in ("width", "height"):
            value = whole(name, getattr(self, name), pixels_per_token, MAX_PIXELS // pixels_per_token)
            sizes[name] = value // pixels_per_token * pixels_per_token
            if sizes[name] != value:
                notes.append(f"{name} {value} is not a multiple of {pixels_per_token}: {sizes[name]} is used")
        if sizes["width"] * sizes["height"] > MAX_PIXELS:
            raise InputError(f"{sizes['width']} x {sizes['height']} pixels are too many; choose at most {MAX_PIXELS}")
        return dataclasses.replace(self, **sizes), notes

    def record(self) -> dict[str, Any]:
        """Return the options that a record holds, in JSON terms."""
        found = {}
        for field in dataclasses.fields(self):
            value, record = getattr(self, field.name), SPECS[field.name].record
            if record == "always" or (record == "changed" and value != field.default):
                found[field.name] = list(value) if isinstance(value, tuple) else value
        return found

    def batch_key(self) -> tuple[Any, ...]:
        """Return the values that all images of a batch must share."""
        return tuple(getattr(self, name) for name, spec in SPECS.items() if spec.one_per_batch)


SPECS: dict[str, Spec] = {field.name: field.metadata["spec"] for field in dataclasses.fields(GenerationOptions)}


def check_options(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return options by name, each checked and in the form in which it is kept.

    Args:
      values: options by name; None only where that is the option's default.
      where: begins the message of an error, such as "item 3: ".

    Raises:
      InputError: a name is unknown or a value is not allowed.
    """
    if unknown := values.keys() - SPECS.keys():
        raise InputError(f"{where}unknown option {min(unknown)!r}; the options are {', '.join(SPECS)}")
    default = lambda name: GenerationOptions.__dataclass_fields__[name].default
    return {
        name: None if value is None and default(name) is None else SPECS[name].kind.check(where + name, value)
        for name, value in values.items()
    }
