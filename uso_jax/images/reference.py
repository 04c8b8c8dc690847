# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reference images: RGB pixels with the hash and the path of the file that they came from."""

import dataclasses
import hashlib
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from uso_jax.common.errors import InputError
from uso_jax.common.untrusted import printable
from uso_jax.images import decode, opening
from uso_jax.images.decode import Pixels, ReferenceMode
from uso_jax.images.opening import Limits

ImageLike = str | pathlib.Path | Image.Image | np.ndarray


@dataclass(frozen=True, eq=False)
class Reference:
    """An image that a request refers to.

    Attributes:
      pixels: uint8 [height, width, 3], sRGB.
      sha256: of the file, or of the pixels if there is no file.
      path: of the file, as the user gave it.
      notes: one sentence for each thing that reading left out, or did unlike upstream.
      mode: how the file was read; None if there was nothing to read.
    """

    pixels: Pixels
    sha256: str
    path: str | None = None
    notes: tuple[str, ...] = ()
    mode: ReferenceMode | None = None

    @classmethod
    def of(
        cls,
        source: "ImageLike | Reference",
        limits: Limits = opening.FILES,
        mode: ReferenceMode = "displayed",
    ) -> "Reference":
        """Read a path, a PIL image or a uint8 array. Return a `Reference` unchanged if it was read in this mode.

        Args:
          source: what to read.
          limits: the largest image that is allowed.
          mode: "displayed" reads images as viewers show them, "upstream" as bytedance/USO does (`decode.read_image`).

        Raises:
          InputError: the source is not an image, or is too large; the message names it.
        """
        if isinstance(source, Reference):
            return source if source.mode in (None, mode) else source._again(limits, mode)
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.ndim != 3 or source.shape[-1] != 3 or 0 in source.shape:
                raise InputError(f"an image array must be uint8 [height, width, 3], not {source.dtype} {source.shape}")
            return cls(source, _digest(source))
        if isinstance(source, Image.Image):
            pixels, notes = decode.read_image(source, what="the image", limits=limits, mode=mode)
            return cls(pixels, _digest(pixels), None, notes, mode)
        if not isinstance(source, str | pathlib.Path):
            raise InputError(f"an image must be a path, a PIL image or an array, not {type(source).__name__}")
        what = f"image {str(source)!r}"
        data = opening.read_file(pathlib.Path(source), what=what, limits=limits)
        return dataclasses.replace(cls.of_bytes(data, what, limits, mode), path=str(source))

    @classmethod
    def of_bytes(
        cls, data: bytes, what: str, limits: Limits = opening.FILES, mode: ReferenceMode = "displayed"
    ) -> "Reference":
        """Read the bytes of a file that has no path; `what` names it in messages.

        Raises:
          InputError: they are not an image, or it is too large.
        """
        pixels, notes = decode.read_image(data, what=what, limits=limits, mode=mode)
        return cls(pixels, hashlib.sha256(data).hexdigest(), None, notes, mode)

    def _again(self, limits: Limits, mode: ReferenceMode) -> "Reference":
        """Read the file once more, in another mode."""
        if self.path is not None and pathlib.Path(self.path).is_file():
            again = Reference.of(self.path, limits, mode)
            if again.sha256 == self.sha256:
                return again
        raise InputError(f"{self.name} was read as {self.mode}; read it with Reference.of(source, mode={mode!r})")

    @property
    def name(self) -> str:
        return f"image {self.path!r}" if self.path else "the image"

    def record(self) -> dict[str, Any]:
        """Return what identifies the image, in JSON terms."""
        return {"path": self.path and printable(self.path), "sha256": self.sha256}

    def content(self, long_side: int, multiple: int) -> Pixels:
        """Resize to `long_side` and crop the centre to multiples of `multiple`, as upstream (preprocess_ref).

        Raises:
          InputError: nothing would be left of the shorter side.
        """
        height, width = self.pixels.shape[:2]
        if height == width == multiple:  # upstream keeps an image of one token
            return self.pixels
        scale = long_side / max(height, width)
        size = (long_side, int(scale * height)) if width >= height else (int(scale * width), long_side)
        cropped = tuple(side // multiple * multiple for side in size)
        if 0 in cropped:
            raise InputError(
                f"{self.name} is too narrow for a content image: {width} x {height} would become {size[0]} x {size[1]},"
                f" less than {multiple} pixels; crop it, or raise content_ref"
            )
        left, top = ((side - kept) // 2 for side, kept in zip(size, cropped, strict=True))
        resized = Image.fromarray(self.pixels).resize(size, Image.Resampling.LANCZOS)
        return np.asarray(resized.crop((left, top, left + cropped[0], top + cropped[1])))


def _digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()
