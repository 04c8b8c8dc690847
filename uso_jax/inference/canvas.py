# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A canvas: the image that generation starts from, and what of it is drawn anew.

Generation starts at a later time, from the image with that time's noise (SDEdit, arXiv 2108.01073). With a mask, what
stays is set back to the image with the next time's noise after every step (RePaint's simple form, arXiv 2201.09865; as
diffusers' `FluxInpaintPipeline`). What stays is pasted into the result, so it keeps its pixels.
"""

import dataclasses
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from uso_jax.common.errors import InputError
from uso_jax.images import opening
from uso_jax.images.decode import MAX_PIXELS, Pixels
from uso_jax.images.opening import Limits
from uso_jax.images.reference import ImageLike, Reference

FAINT = 8 / 255  # what a mask says below this is the noise of a JPEG


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
        """Extend an image by its margins and bring it to a size. Return the canvas, and a note if some of it was cut.

        Args:
          image: the image to edit.
          mask: white where it is drawn anew, of the image's size.
          margins: pixels to add at the left, top, right and bottom, all drawn anew.
          size: (width, height); one that is None follows from the other, and both None keep the image's.
          multiple: of which both are multiples; the centre is kept.

        Raises:
          InputError: mask and image differ in size, or the image is too small or too large.
        """
        pixels, drawn = _extended(image.pixels, None if mask is None else _grey(mask, image), margins)
        wanted = target_size(pixels.shape[:2], size)
        if wanted[0] * wanted[1] > MAX_PIXELS:
            raise InputError(f"{wanted[0]} x {wanted[1]} pixels are too many; choose at most {MAX_PIXELS}")
        if min(wanted) < multiple:
            raise InputError(f"the image would be {wanted[0]} x {wanted[1]} pixels; a side needs at least {multiple}")
        width, height = (side // multiple * multiple for side in wanted)
        extra = pixels.shape[1] - width, pixels.shape[0] - height
        if all(0 <= more < multiple for more in extra):  # so that the recorded size repeats it
            left, top = (more // 2 for more in extra)
            inside = np.s_[top : top + height, left : left + width]
            made = cls(image, pixels[inside], mask, None if drawn is None else drawn[inside])
        else:
            made = cls(image, pixels, mask, drawn).resized(width, height)
        shown = f"{image.name} was cut to {width} x {height}"
        if (width, height) != wanted:
            return made, [f"{shown}, whole multiples of {multiple} pixels"]
        is_other_shape = abs(width * pixels.shape[0] - height * pixels.shape[1]) > max(pixels.shape[:2])
        return made, [f"{shown}, which has another shape"] if is_other_shape else []

    def resized(self, width: int, height: int) -> "Canvas":
        """Return the canvas at another size; of another shape, its centre."""
        fit = lambda array, how: np.asarray(ImageOps.fit(Image.fromarray(array), (width, height), how))
        drawn = None if self.drawn is None else fit(self.drawn, Image.Resampling.BILINEAR)
        return dataclasses.replace(self, pixels=fit(self.pixels, Image.Resampling.LANCZOS), drawn=drawn)

    def latent_weights(self, downscale: int, patch: int, channels: int) -> Float[np.ndarray, "l d"]:
        """Return 1 for each latent that is drawn anew and 0 for the others, packed as tokens.

        A latent that the mask touches, however faintly, is drawn: what is grey is blended in pixels.
        """
        height, width = self.pixels.shape[:2]
        drawn = np.ones((height, width), bool) if self.drawn is None else self.drawn > 0
        latents = drawn.reshape(height // downscale, downscale, width // downscale, downscale).any(axis=(1, 3))
        rows, columns = (side // patch for side in latents.shape)
        places = latents.reshape(rows, patch, columns, patch).swapaxes(1, 2).reshape(rows * columns, 1, patch * patch)
        spread = np.broadcast_to(places, (rows * columns, channels // patch**2, patch * patch))
        return spread.reshape(-1, channels).astype(np.float32)

    def paste(self, made: Pixels) -> Pixels:
        """Return the made image with what stays of this one, to the grey level."""
        if self.drawn is None:
            return made
        share = self.drawn[..., None]
        return np.rint(share * made + (1 - share) * self.pixels).astype(np.uint8)

    def record(self) -> dict[str, Any]:
        """Return what identifies image and mask, in JSON terms."""
        return {"image": self.image.record()} | ({} if self.mask is None else {"mask": self.mask.record()})


def read_mask(source: ImageLike | Reference | bytes, what: str = "mask", limits: Limits = opening.FILES) -> Reference:
    """Read a mask: white counts, or what is transparent if anything is, as ComfyUI and OpenAI have it.

    Raises:
      InputError: the source is not an image, or is too large.
    """
    if isinstance(source, Reference):
        return source
    if not isinstance(source, str | pathlib.Path | bytes | Image.Image):
        return Reference.of(source, limits)
    if isinstance(source, Image.Image):
        data, reference = source, Reference.of(source, limits)
    else:
        is_file = not isinstance(source, bytes)
        data = (
            opening.read_file(pathlib.Path(source), what=f"{what} {str(source)!r}", limits=limits)
            if is_file
            else source
        )
        reference = Reference.of_bytes(data, f"the {what}", limits)
        reference = dataclasses.replace(reference, path=str(source)) if is_file else reference
    opened = opening.open_image(data, what=f"the {what}", limits=limits).image
    has_alpha = opened.has_transparency_data
    alpha = np.asarray(opened.convert("RGBA").getchannel("A")) if has_alpha else np.uint8([255])
    if (alpha == 255).all():
        return dataclasses.replace(reference, mode=None)
    pixels = np.repeat(255 - alpha[..., None], 3, axis=-1).astype(np.uint8)
    note = f"the {what} has transparent pixels: they count, and its colours do not"
    return dataclasses.replace(reference, pixels=pixels, mode=None, notes=(note,))


def check_same_size(mask: Reference, image: Reference, names: str) -> None:
    """Raise InputError for a mask that has another size than its image; `names` names both."""
    if mask.pixels.shape != image.pixels.shape:
        shown = " and ".join(f"{one.pixels.shape[1]} x {one.pixels.shape[0]}" for one in (mask, image))
        raise InputError(f"{names} must have the same size, not {shown} pixels")


def skipped_steps(num_steps: int, strength: float) -> int:
    """Return the number of first steps that a strength leaves out, as diffusers counts them."""
    return int(num_steps - num_steps * strength)


def _grey(mask: Reference, image: Reference) -> Float[np.ndarray, "h w"]:
    check_same_size(mask, image, "mask and image")
    grey = np.asarray(Image.fromarray(mask.pixels).convert("L"), np.float32) / 255
    return np.where(grey < FAINT, np.float32(0), grey)


def _extended(
    pixels: UInt8[np.ndarray, "h w 3"], drawn: np.ndarray | None, margins: tuple[int, ...]
) -> tuple[Pixels, np.ndarray | None]:
    """Repeat the edges into the margins, which are drawn anew."""
    if not any(margins):
        return pixels, drawn
    left, top, right, bottom = margins
    count = (pixels.shape[0] + top + bottom) * (pixels.shape[1] + left + right)
    if count > MAX_PIXELS:
        raise InputError(f"an image with these margins would have {count} pixels; choose at most {MAX_PIXELS}")
    around = ((top, bottom), (left, right))
    drawn = np.zeros(pixels.shape[:2], np.float32) if drawn is None else drawn
    return np.pad(pixels, (*around, (0, 0)), mode="edge"), np.pad(drawn, around, constant_values=1.0)


def target_size(image: tuple[int, int], size: tuple[int | None, int | None]) -> tuple[int, int]:
    """Return the (width, height) that an image of (rows, columns) gets; see `Canvas.fit`."""
    (rows, columns), (width, height) = image, size
    if width is None and height is None:
        return columns, rows
    if width is None:
        return max(round(columns * height / rows), 1), height
    return width, max(round(rows * width / columns), 1) if height is None else height
