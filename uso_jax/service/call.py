# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A call of an image route, in OpenAI's fields and this project's.

OpenAI's (platform.openai.com, API reference, Images): prompt, n, size, response_format, output_format,
output_compression, stream; model, quality, style, user, background, moderation, input_fidelity, partial_images and
safety_identifier are read and have no effect. This project's: content, styles, style_masks, image, mask, content_mask,
adapters, and every generation option by its name.

An image is base64, as a data URL or bare; forms have files. A style may also be the name of a saved one, and a style's
mask null or empty.
"""

import base64
import binascii
import io
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from uso_jax.common.errors import InputError
from uso_jax.images import opening
from uso_jax.images.reference import Reference
from uso_jax.inference.canvas import read_mask, target_size
from uso_jax.inference.option_kinds import whole
from uso_jax.inference.options import MAX_SEED, SPECS, check_options
from uso_jax.inference.styles import StyleEmbedding
from uso_jax.service.limits import Limits, read_size
from uso_jax.service.work import Adapters

IGNORED = (
    "model", "quality", "style", "user", "background", "moderation", "input_fidelity", "partial_images",
    "safety_identifier",
)  # fmt: skip
OWN = ("content", "styles", "style_masks", "image", "mask", "content_mask", "adapters")
KNOWN = ("prompt", "n", "size", "response_format", "output_format", "output_compression", "stream")
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
_DATA = re.compile(r"data:image/[\w.+-]+;base64,")
_NAME_LENGTH = 64  # characters; base64 of any image is longer


@dataclass(frozen=True, eq=False)
class Call:
    """What a client asked for.

    Attributes:
      prompt: the description.
      count: number of images, with consecutive seeds.
      options: generation options by name.
      contents, styles: references.
      images: "image", "mask", "content_mask" and the list "style_masks", those that were sent.
      adapters: names and strengths.
      format: a key of FORMATS.
      quality: of JPEG and WebP, 0 to 100.
      stream: whether progress is sent as events.
    """

    prompt: str
    count: int
    options: dict[str, Any]
    contents: tuple[Reference, ...] = ()
    styles: tuple[Reference | StyleEmbedding, ...] = ()
    images: Mapping[str, Any] = field(default_factory=dict)
    adapters: Adapters = ()
    format: str = "png"
    quality: int = 90
    stream: bool = False


def read_call(
    values: Mapping[str, Any], limits: Limits, saved: Callable[[str], StyleEmbedding], content_ref: int = 512
) -> Call:
    """Read the fields of a call.

    Args:
      values: by name; an image is base64 text or bytes.
      limits: of what a client may ask.
      saved: returns a saved style by its name; raises InputError.
      content_ref: the long side of content images where a call names none.

    Raises:
      InputError: a field is unknown, or a value is not allowed; the message names it.
    """
    values = {name: value for name, value in values.items() if value is not None and name not in IGNORED}
    if unknown := sorted(values.keys() - {*KNOWN, *OWN, *SPECS}):
        raise InputError(f"unknown field {unknown[0]!r}; the fields are {', '.join((*KNOWN, *OWN, *SPECS))}")
    prompt = values.get("prompt", "")
    if not isinstance(prompt, str):
        raise InputError(f"prompt must be text, not {type(prompt).__name__}")
    if values.get("response_format", "b64_json") != "b64_json":
        raise InputError("response_format must be b64_json: this service keeps no images that an address could name")
    options = check_options({name: value for name, value in values.items() if name in SPECS})
    options |= _size(values.get("size", "auto"), options)
    count = whole("n", values.get("n", 1), 1, limits.images)
    options.setdefault("seed", secrets.randbelow(1 << 31))
    whole("seed", options["seed"], 0, MAX_SEED - count + 1)
    whole("num_steps", options.get("num_steps") or 1, 1, limits.steps)
    mode = options.get("reference_mode", "displayed")
    contents, styles = (_several(values.get(name)) for name in ("content", "styles"))
    if len(contents) + len(styles) > limits.references:
        raise InputError(f"content and styles may be {limits.references} images together, not more")
    if len(masks := _several(values.get("style_masks"))) > len(styles):
        raise InputError(f"style_masks has {len(masks)} masks for {len(styles)} styles")
    read = lambda value, name: _reference(value, name, mode)
    side = options.get("content_ref") or content_ref
    if len(contents) * side * side > limits.pixels:
        raise InputError(f"{len(contents)} content images at content_ref {side} are more than {limits.pixels} pixels")
    images = _images(values, mode)
    if "image" in images:  # before margins are added to it
        left, top, right, bottom = options.get("outpaint", (0, 0, 0, 0))
        height, width = images["image"].pixels.shape[:2]
        extended = height + top + bottom, width + left + right
        check_size(*extended, 1.0, limits)
        check_size(*target_size(extended, (options.get("width"), options.get("height"))), 1.0, limits)
    stream = values.get("stream", False)
    if not isinstance(stream, bool):
        raise InputError(f"stream must be true or false, not {stream!r}")
    return Call(
        prompt,
        count,
        options,
        contents=tuple(read(value, "content") for value in contents),
        styles=tuple(_style(value, saved, mode) for value in styles),
        images=images,
        adapters=_adapters(values.get("adapters")),
        format=_format(values.get("output_format", "png")),
        quality=whole("output_compression", values.get("output_compression", 90), 0, 100),
        stream=stream,
    )


def check_size(width: int, height: int, upscale: float, limits: Limits) -> None:
    """Raise InputError for an image that is larger than the service allows."""
    if (pixels := round(width * height * upscale**2)) > limits.pixels:
        raise InputError(f"an image of {pixels} pixels is larger than this service draws, {limits.pixels}")


def encode(image: Image.Image, call: Call) -> str:
    """Return an image's file in base64."""
    buffer = io.BytesIO()
    image.save(buffer, FORMATS[call.format], **({} if call.format == "png" else {"quality": call.quality}))
    return base64.b64encode(buffer.getvalue()).decode()


def _size(size: Any, options: Mapping[str, Any]) -> dict[str, int]:
    if size == "auto":
        return {}
    if (found := read_size(size)) is None:
        raise InputError(f"size must be auto or WIDTHxHEIGHT, such as 1024x768, not {size!r}")
    if {"width", "height"} & options.keys():
        raise InputError("pass size, or width and height, not both")
    return check_options(dict(zip(("width", "height"), found, strict=True)))


def _format(name: Any) -> str:
    if not isinstance(name, str) or name not in FORMATS:
        raise InputError(f"output_format must be one of {', '.join(FORMATS)}, not {name!r}")
    return name


def _several(value: Any) -> Sequence[Any]:
    return () if value is None else value if isinstance(value, list) else (value,)


def _reference(value: Any, name: str, mode: str) -> Reference:
    data = value if isinstance(value, bytes) else _decoded(value, name)
    return Reference.of_bytes(data, f"the {name} image", opening.UPLOADS, mode)


def _decoded(value: Any, name: str) -> bytes:
    if not isinstance(value, str):
        raise InputError(f"{name} must be an image in base64, not {type(value).__name__}")
    if value.startswith(("http:", "https:", "file:")):
        raise InputError(f"{name} must be an image in base64: addresses are not fetched")
    try:
        return base64.b64decode(_DATA.sub("", value, count=1), validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{name} must be an image in base64, or a data URL with one") from None


def _style(value: Any, saved: Callable[[str], StyleEmbedding], mode: str) -> Reference | StyleEmbedding:
    if isinstance(value, str) and len(value) <= _NAME_LENGTH and not value.startswith("data:"):
        return saved(value)
    return _reference(value, "styles", mode)


def _images(values: Mapping[str, Any], mode: str) -> dict[str, Any]:
    images: dict[str, Any] = {"image": _reference(values["image"], "image", mode)} if "image" in values else {}
    for name in {"mask", "content_mask"} & values.keys():
        images[name] = _mask(values[name], name)
    if masks := _several(values.get("style_masks")):
        images["style_masks"] = [_mask(one, "style_masks") if one else None for one in masks]
    return images


def _mask(value: Any, name: str) -> Reference:
    return read_mask(value if isinstance(value, bytes) else _decoded(value, name), name, opening.UPLOADS)


def _adapters(value: Any) -> Adapters:
    """Read names, alone or with strengths: ["ink"] or {"ink": 0.8}."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        value = dict.fromkeys(value, 1.0)
    if value is None:
        return ()
    good = isinstance(value, dict) and all(type(one) in (int, float) and abs(one) <= 10 for one in value.values())
    if not good or len(value) > 8:
        raise InputError("adapters must be a list of names, or an object of names and strengths; at most 8")
    return tuple((name, float(strength)) for name, strength in value.items())
