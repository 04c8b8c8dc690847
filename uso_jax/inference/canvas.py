# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A canvas: the image that generation starts from, and what of it is drawn anew.

Generation starts at a later time, from the image with that time's noise (SDEdit, arXiv 2108.01073). With a mask, what
stays is set back to the image with the next time's noise after every step (RePaint's simple form, arXiv 2201.09865; as
diffusers' `FluxInpaintPipeline`). What stays is pasted into the result, so it keeps its pixels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps

from uso_jax.common.errors import InputError
from uso_jax.images.decode import MAX_PIXELS, Pixels
from uso_jax.images.reference import Reference


@dataclass(frozen=True, eq=False)
class Canvas:
    """An image of the target's size.

    Attributes:
      image: the image as it was read.
      pixels: the image at the target's size.
      mask: the mask as it was read; None: there is none.
      drawn: how much of each pixel is drawn anew, from 0 to 1 [height, width]; None: all is.
    """

    image: Reference
    pixels: Pixels
    mask: Reference | None = None
    drawn: Float[np.ndarray, "h w"] | None = None

    @classmethod
    def fit(
        cls,
        image: Reference,
        mask: Reference | None,
        margins: tuple[int, ...],
        size: tuple[int | None, int | None],
        multiple: int,
    ) -> tuple["Canvas", list[str]]:
        """Extend an image by its margins and bring it to a size. Return the canvas, and a note if it was cropped.

        Args:
          image: the image to edit.
          mask: white where it is drawn anew, of the image's size.
          margins: pixels to add at the left, top, right and bottom, all drawn anew.
          size: (width, height); one that is None follows from the other, and both None keep the image's.
          multiple: of which both are multiples; the centre is kept.

        Raises:
          InputError: mask and image differ in size, or the image is too small.
        """
        pixels, drawn = image.pixels, None
        if mask is not None:
            if mask.pixels.shape != pixels.shape:
                shown = " and ".join(f"{one.shape[1]} x {one.shape[0]}" for one in (mask.pixels, pixels))
                raise InputError(f"mask and image must have the same size, not {shown} pixels")
            drawn = _grey(mask.pixels)
        if any(margins):
            left, top, right, bottom = margins
            count = (pixels.shape[0] + top + bottom) * (pixels.shape[1] + left + right)
            if count > MAX_PIXELS:
                raise InputError(f"an image with these margins would have {count} pixels; choose at most {MAX_PIXELS}")
            around = ((top, bottom), (left, right))
            drawn = np.zeros(pixels.shape[:2], np.float32) if drawn is None else drawn
            drawn = np.pad(drawn, around, constant_values=1.0)
            pixels = np.pad(pixels, (*around, (0, 0)), mode="edge")
        width, height = _whole(_size(pixels, size), multiple)
        extra = pixels.shape[1] - width, pixels.shape[0] - height
        if all(0 <= more < multiple for more in extra):  # so that the recorded size repeats it
            left, top = (more // 2 for more in extra)
            inside = np.s_[top : top + height, left : left + width]
            pixels, drawn = pixels[inside], None if drawn is None else drawn[inside]
        else:
            fit = lambda array, how: np.asarray(ImageOps.fit(Image.fromarray(array), (width, height), how))
            pixels = fit(pixels, Image.Resampling.LANCZOS)
            drawn = None if drawn is None else fit(drawn, Image.Resampling.BILINEAR)
        cropped = f"{image.name} was cropped to {width} x {height}, whole multiples of {multiple} pixels"
        notes = [cropped] if size == (None, None) and any(extra) else []
        return cls(image, pixels, mask, drawn), notes

    def latent_weights(self, cell: int, patch: int, channels: int) -> Float[np.ndarray, "l d"]:
        """Return how much of each latent is drawn anew, packed as tokens; a latent is one cell of pixels a side.

        A latent counts as its most drawn pixel, so all that the mask touches is drawn.
        """
        height, width = self.pixels.shape[:2]
        drawn = np.ones((height, width), np.float32) if self.drawn is None else self.drawn
        latents = drawn.reshape(height // cell, cell, width // cell, cell).max(axis=(1, 3))
        rows, columns = (side // patch for side in latents.shape)
        places = latents.reshape(rows, patch, columns, patch).swapaxes(1, 2).reshape(rows * columns, 1, patch * patch)
        return np.broadcast_to(places, (rows * columns, channels // patch**2, patch * patch)).reshape(-1, channels)

    def paste(self, made: Pixels) -> Pixels:
        """Return the made image with what stays of this one, to the grey level."""
        if self.drawn is None:
            return made
        share = self.drawn[..., None]
        return np.rint(share * made + (1 - share) * self.pixels).astype(np.uint8)

    def record(self) -> dict[str, Any]:
        """Return what identifies image and mask, in JSON terms."""
        return {"image": self.image.record()} | ({} if self.mask is None else {"mask": self.mask.record()})


def first_step(num_steps: int, strength: float) -> int:
    """Return the number of steps that a strength leaves out at the beginning, as diffusers counts them."""
    return int(num_steps - num_steps * strength)


def _grey(pixels: Pixels) -> Float[np.ndarray, "h w"]:
    return np.asarray(Image.fromarray(pixels).convert("L"), np.float32) / 255


def _size(pixels: Pixels, size: tuple[int | None, int | None]) -> tuple[int, int]:
    (width, height), (rows, columns) = size, pixels.shape[:2]
    if width is None and height is None:
        return columns, rows
    if width is None:
        return max(round(columns * height / rows), 1), height
    return width, max(round(rows * width / columns), 1) if height is None else height


def _whole(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    if min(size) < multiple:
        raise InputError(f"the image would be {size[0]} x {size[1]} pixels; a side must have at least {multiple}")
    width, height = (side // multiple * multiple for side in size)
    return width, height
