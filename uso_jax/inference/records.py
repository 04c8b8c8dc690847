# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a call returns: images, and for each the record that repeats it. `from_record` reads one again."""

import pathlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import jax
from PIL import Image

import uso_jax
from uso_jax.common.errors import InputError
from uso_jax.images.reference import Reference
from uso_jax.inference import styles as style_files
from uso_jax.inference.options import check_options
from uso_jax.inference.request import IMAGES, Request
from uso_jax.inference.styles import StyleEmbedding
from uso_jax.models.uso import USO
from uso_jax.weights.pretrained import Pretrained

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow")


@dataclass(frozen=True, eq=False)
class Result:
    """Generated images, and for each the record that repeats it, in JSON terms."""

    images: list[Image.Image]
    records: list[dict[str, Any]]


def context_of(pretrained: Pretrained, system: USO, tile: int | None) -> dict[str, Any]:
    """Return what decides an image besides its request, in JSON terms; `tile` is the decoder's."""
    more: dict[str, Any] = {"tile": tile} if tile else {}
    more |= {"quantize_activations": True} if getattr(system, "quantize_activations", False) else {}
    more |= {} if pretrained.adapted.merge else {"merge": False}
    if adapters := pretrained.adapted.record():
        more["adapters"] = adapters
    return {"dtype": pretrained.dtype, "components": pretrained.fingerprints, **more}


def record_of(request: Request, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that repeats an image, in JSON terms; `weights` has their name and the context."""
    return {
        "format": 1,
        "request": request.record(),
        "content_sizes": [list(pixels.shape[1::-1]) for pixels in request.contents],
        "notes": list(request.notes),
        "weights": dict(weights),
        "versions": {"uso_jax": uso_jax.__version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in _PACKAGES},
        "device": jax.local_devices()[0].device_kind,
    }


def from_record(record: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Return the arguments of `make_request` that repeat a record, with "options" as a dict by name.

    Args:
      record: of an image (`uso_jax.images.files.read_record`).
      folder: of the image. References are looked for at their recorded path, then relative to this folder.

    Raises:
      InputError: the record is damaged, or a reference is missing or is another file than it was.
    """
    try:
        options = dict(record["request"])
        prompt = options.pop("prompt")
        references = {
            name: [_found(item["path"], item["sha256"], folder) for item in options.pop(name)]
            for name in ("contents", "styles")
        }
        for name in options.keys() & set(IMAGES):
            item = options.pop(name)
            found = _found(item["path"], item["sha256"], folder)
            references[name] = found.path if "mask" in name else found  # a mask may be read by its transparency
        if masks := options.pop("style_masks", ()):
            path = lambda item: _found(item["path"], item["sha256"], folder).path
            references["style_masks"] = [None if item is None else path(item) for item in masks]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the image's record is damaged ({error})") from error
    return {"prompt": prompt, **references, "options": check_options(options, "the image's record: ")}


def _found(path: str | None, sha256: str, folder: pathlib.Path) -> Reference | StyleEmbedding:
    if path is None:
        raise InputError("the image used a reference that was not a file, so it cannot be repeated")
    if style_files.is_style(path):
        reference = style_files.read_style(path if style_files.style_path(path).is_file() else folder / path)
    else:
        reference = Reference.of(path if pathlib.Path(path).is_file() else folder / path)
    if reference.sha256 != sha256:
        raise InputError(f"{path} is no longer the file that the image was made with; restore that file")
    return reference
