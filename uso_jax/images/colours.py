# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Any image that PIL decodes, as sRGB with 8 bits a channel.

In this order: deep samples are rounded to 8 bits, palettes and Lab are resolved, the colour profile is applied, and
transparent pixels are blended with white.
"""

import functools
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms

from uso_jax.images.opening import Opened

_BAND = 1 << 20  # pixels that are converted at once, so that temporary memory stays small
_MAX_PROFILE = 4 << 20  # bytes; the largest profiles of printers in use have 3 MB
_SAME = 2  # levels; sRGB profiles of different makers differ by so much
_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab "}  # colour spaces of profiles by PIL's modes


def pixels(opened: Opened) -> tuple[UInt8[np.ndarray, "h w 3"], set[str]]:
    """Return an image as an array, and what was changed: "transparency", "profile", "depth".

    Needs no memory beside the image and the array.
    """
    width, height = opened.image.size
    changed: set[str] = set()
    found = np.empty((height, width, 3), np.uint8)
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        band = opened.image.crop((0, top, width, min(top + rows, height)))
        found[top : top + rows] = np.asarray(_srgb(band, changed))
    return found, changed


def srgb(opened: Opened) -> Image.Image:
    """Return an image of mode RGB."""
    image = opened.image
    if image.mode == "RGB" and not set(image.info) & {"icc_profile", "transparency"}:
        return image
    return _srgb(image, set())


def _srgb(image: Image.Image, changed: set[str]) -> Image.Image:
    """Return a part of an image in sRGB, and add to `changed` what was done to it."""
    profile, hidden = image.info.get("icc_profile"), image.info.get("transparency")
    alpha = None
    if image.mode.startswith(("I", "F")):
        image, alpha = _shallow(image, hidden)
        changed.add("depth")
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or hidden is not None:
        image, alpha = _split(image)
    image = _convert(image, profile, changed)
    if alpha is not None and alpha.getextrema()[0] < 255:
        changed.add("transparency")
        # Transparent pixels are often black; viewers show white behind them.
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    return image


def _shallow(image: Image.Image, hidden: object) -> tuple[Image.Image, Image.Image | None]:
    """Round deep grey levels to 8 bits: integers are read as 16-bit, floats as [0, 1]. PIL would clip them to white."""
    values = np.asarray(image)
    alpha = Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)) if isinstance(hidden, int) else None
    if image.mode == "F":
        values = np.rint(np.clip(np.nan_to_num(values * np.float32(255)), 0, 255))
    else:
        values = (np.clip(values, 0, 65535).astype(np.uint32) + 128) // 257
    return Image.fromarray(values.astype(np.uint8)), alpha


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Return an image without its transparency, and its transparency."""
    kept = "LA" if image.mode in ("L", "LA", "La") else "RGBA"
    image = image if image.mode == kept else image.convert(kept)
    return image.convert(kept[:-1]), image.getchannel("A")


def _convert(image: Image.Image, profile: bytes | None, changed: set[str]) -> Image.Image:
    """Return an image without transparency as sRGB, by its profile unless that is invalid or sRGB."""
    if image.mode not in _SPACES:
        image = image.convert("L" if image.mode == "1" else "RGB")
    transform = _transform(profile, image.mode) if profile and len(profile) <= _MAX_PROFILE else None
    if transform is not None:
        changed.add("profile")
    elif image.mode == "LAB":
        transform = _transform(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(), "LAB")
    if transform is not None:
        return ImageCms.applyTransform(image, transform)
    return image if image.mode == "RGB" else image.convert("RGB")


@functools.lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform of a profile to sRGB, or None if it changes nothing or is invalid."""
    try:
        described = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if described.profile.xcolor_space != _SPACES[mode]:
            return None
        found = ImageCms.buildTransform(described, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode != "RGB":
            return found
        # Names prove nothing: linear profiles are called sRGB too.
        levels = np.array([0, 1, 5, 17, 51, 85, 119, 153, 187, 221, 255], np.uint8)
        probe = Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(len(levels), -1, 3))
        changed = np.asarray(ImageCms.applyTransform(probe, found)).astype(np.int16) - np.asarray(probe)
        return None if np.abs(changed).max() <= _SAME else found
    except Exception:  # viewers ignore an invalid profile too
        return None
