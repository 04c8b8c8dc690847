# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Generated images as files, each with the record that repeats it.

An image is a PNG that holds its record (prompt, seed, sizes, references, weights) as text under the key "uso_jax". The
same record is in a .json file beside it.
"""

import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, PngImagePlugin

from uso_jax.common import atomic_files, untrusted
from uso_jax.common.errors import InputError
from uso_jax.images import opening
from uso_jax.images.reference import Reference

KEY = "uso_jax"


def append_references(image: Image.Image, references: Sequence[Reference]) -> Image.Image:
    """Return an image with its references to the right of it at their own sizes, as upstream's --concat_refs."""
    parts = [image, *(Image.fromarray(reference.pixels) for reference in references)]
    joined = Image.new("RGB", (sum(part.width for part in parts), max(part.height for part in parts)))
    left = 0
    for part in parts:
        joined.paste(part, (left, 0))
        left += part.width
    return joined


def write_image(path: pathlib.Path, image: Image.Image, record: Mapping[str, Any]) -> None:
    """Write an image and its record atomically. The PNG is written last, so if it exists, both files are complete.

    Raises:
      InputError: a file could not be written.
    """
    text = json.dumps(untrusted.recorded(record), indent=1, ensure_ascii=False, sort_keys=True)
    info = PngImagePlugin.PngInfo()
    info.add_itxt(KEY, text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    with atomic_files.explained(path, "choose another --save_path"):
        path.parent.mkdir(parents=True, exist_ok=True)
        for target, data in ((path.with_suffix(".json"), (text + "\n").encode()), (path, buffer.getvalue())):
            atomic_files.write_file(target, data)


def read_record(path: pathlib.Path) -> dict[str, Any]:
    """Read the record of a generated image.

    Raises:
      InputError: the file does not exist, or has no record.
    """
    text = opening.open_image(pathlib.Path(path), what=str(path)).image.info.get(KEY)
    if not isinstance(text, str):
        raise InputError(f"{path} has no record of uso_jax: another program made it or saved it again")
    record = untrusted.json(text, dict[str, Any], f"the record in {path}", remedy="restore the image")
    if record.get("format") != 1:
        raise InputError(f"{path} has no record of uso_jax: another program made it or saved it again")
    return record
