# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""References: notes on what is read unlike upstream, and the mode that reads as upstream does."""

import io

import encoded_images as files
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from uso_jax.common.errors import InputError
from uso_jax.images.reference import Reference
from uso_jax.models.uso import to_bytes

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "CMYK", "F")


def write(path, mode="RGB", kind="PNG", orientation=1, **options):
    image = Image.fromarray(PIXELS)
    if mode in ("I;16", "I", "F"):
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray((PIXELS[..., 0].astype(np.float64) * (257 if mode != "F" else 1 / 255)).astype(dtype))
    elif mode != "RGB":
        image = image.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(PIXELS[..., 1]))
    path.write_bytes(files.encode(image, kind, orientation, **options))
    return path


def upstream(path):
    """Return an image as bytedance/USO's inference.py reads it."""
    # From memory: where PIL maps an uncompressed TIFF that is turned, it mixes up its pixels.
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(MODES), st.sampled_from(["PNG", "TIFF"]), st.integers(1, 8))
def test_upstreams_mode_equals_upstream(tmp_path_factory, mode, kind, orientation):
    if mode in ("CMYK", "F", "I"):  # which PNG does not hold
        kind = "TIFF"
    path = write(tmp_path_factory.getbasetemp() / f"x.{kind}", mode, kind, orientation)
    reference = Reference.of(path, mode="upstream")
    assert np.array_equal(reference.pixels, upstream(path)) and not reference.notes
    displayed = Reference.of(path)
    assert displayed.notes or np.array_equal(displayed.pixels, reference.pixels)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"mode": "RGBA"}, "transparent pixels, which are blended with white; upstream"),
        ({"mode": "LA"}, "transparent pixels"),
        ({"orientation": 6}, "turned as its EXIF orientation says; upstream"),
        ({"mode": "I;16"}, "more than 8 bits a pixel"),
        ({"icc_profile": "linear"}, "converted to sRGB; upstream"),
    ],
)
def test_a_note_for_each_difference(tmp_path, options, fragment):
    if "icc_profile" in options:
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
        assert not Reference.of(write(tmp_path / "a.png", icc_profile=lab)).notes  # it is invalid there
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        options = {"icc_profile": srgb.replace(b"rXYZ", b"____").replace(b"bXYZ", b"rXYZ").replace(b"____", b"bXYZ")}
    (note,) = Reference.of(write(tmp_path / "a.png", **options)).notes
    assert fragment in note and "a.png" in note
    assert not Reference.of(write(tmp_path / "a.png", **options), mode="upstream").notes


def test_what_is_equal_has_no_note(tmp_path):
    opaque = Image.fromarray(PIXELS).convert("RGBA")
    opaque.save(tmp_path / "a.png")
    for mode in ("displayed", "upstream"):
        reference = Reference.of(tmp_path / "a.png", mode=mode)
        assert not reference.notes and np.array_equal(reference.pixels, PIXELS) and reference.mode == mode
    assert Reference.of(PIXELS).mode is None


def test_a_reference_is_read_again_in_another_mode(tmp_path):
    path = write(tmp_path / "a.png", "RGBA")
    first = Reference.of(path)
    assert Reference.of(first) is first
    again = Reference.of(first, mode="upstream")
    assert again.mode == "upstream" and np.array_equal(again.pixels, upstream(path)) and again.sha256 == first.sha256
    write(path, "LA")
    with pytest.raises(InputError, match="was read as displayed"):
        Reference.of(first, mode="upstream")
    array = Reference.of(PIXELS)
    assert Reference.of(array, mode="upstream") is array


def test_rounding_of_the_result():
    x = np.linspace(-1.1, 1.1, 3 * 4096, dtype=np.float32).reshape(1, 64, 64, 3)
    clipped = np.clip(x, -1, 1)
    assert np.array_equal(to_bytes(jnp.asarray(x), True), (127.5 * (clipped + 1)).astype(np.uint8))
    assert np.array_equal(to_bytes(jnp.asarray(x)), np.rint(127.5 * (clipped + 1)).astype(np.uint8))
