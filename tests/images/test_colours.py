# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Colours: transparency of every bit depth, colour profiles by what they do, deep samples, memory in bands."""

import io
import struct

import encoded_images as files
import numpy as np
import pytest
from PIL import Image, ImageCms

from uso_jax.images import colours, decode, opening

WHITE = [255] * 3


def read(data):
    return decode.decode_image(data, what="x").tolist()[0]


def levels(*values):
    return struct.pack(f">{len(values)}H", *values)


@pytest.mark.parametrize(
    ("depth", "row", "hidden", "wanted"),
    [
        (1, b"\x40", 0, [255, 255]),
        (2, b"\x1b", 1, [0, 255, 170, 255]),
        (4, b"\x0a\x5f", 5, [0, 170, 255, 255]),
        (8, bytes([0, 9, 200]), 9, [0, 255, 200]),
        (16, levels(0x0909, 0x0908, 0xFFFF), 0x0909, [255, 9, 255]),
    ],
)
def test_hidden_level(depth, row, hidden, wanted):
    data = files.png(depth, 0, [row], len(wanted), files.chunk(b"tRNS", levels(hidden)))
    assert read(data) == [[level] * 3 for level in wanted]


@pytest.mark.parametrize("scale", [1, 256])
def test_hidden_colour(scale):
    pack = levels if scale > 1 else lambda *values: bytes(values)
    hidden = (scale * 1 + 2, scale * 2 + 3, scale * 3 + 4) if scale > 1 else (1, 2, 3)
    near = (*hidden[:2], hidden[2] + 1)
    data = files.png(8 if scale == 1 else 16, 2, [pack(*hidden, *near)], 2, files.chunk(b"tRNS", levels(*hidden)))
    assert read(data) == [WHITE, [value >> (8 if scale > 1 else 0) for value in near]]


@pytest.mark.parametrize(("depth", "row"), [(1, 0x40), (2, 0x10), (4, 0x01)])
def test_transparency_of_a_palette(depth, row):
    palette = files.chunk(b"PLTE", bytes([9, 9, 9, 200, 0, 0]))
    data = files.png(depth, 3, [bytes([row])], 2, palette + files.chunk(b"tRNS", bytes([255, 0])))
    assert read(data) == [[9, 9, 9], WHITE]


def profile(space="RGB", **curves):
    """Return the profile of sRGB, by its name, with other tone curves: gamma by channel, 1 for linear."""
    if space == "GRAY":
        return _grey_profile()
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for number in range(struct.unpack_from(">I", data, 128)[0]):
        at = 132 + 12 * number
        channel = bytes(data[at : at + 1]).decode()
        if bytes(data[at + 1 : at + 4]) == b"TRC" and channel in curves:
            struct.pack_into(">II", data, at + 4, len(data), 16)
            data += b"curv" + bytes(4) + struct.pack(">IHH", 1, int(curves[channel] * 256), 0)
    struct.pack_into(">I", data, 0, len(data))
    return bytes(data)


def _grey_profile():
    """Return a grey profile of gamma 1: a header, a white point and a curve."""
    white = b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    curve = b"curv" + bytes(4) + struct.pack(">IHH", 1, 256, 0)
    start = 128 + 4 + 24
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", start, len(white), b"kTRC", start + len(white), len(curve))
    body = tags + white + curve
    head = struct.pack(">I4sI4s4s4s", 128 + len(body), bytes(4), 0x02400000, b"mntr", b"GRAY", b"XYZ ").ljust(36, b"\0")
    head += b"acsp" + bytes(28) + struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    return head.ljust(128, b"\0") + body


LINEAR = profile(r=1, g=1, b=1)


def test_a_linear_profile_counts_whatever_its_name():
    described = ImageCms.ImageCmsProfile(io.BytesIO(LINEAR))
    assert "srgb" in ImageCms.getProfileDescription(described).lower()
    data = files.encode(Image.new("RGB", (1, 1), (55, 128, 200)), "PNG", icc_profile=LINEAR)
    assert np.abs(np.subtract(read(data)[0], [128, 188, 229])).max() <= 2  # of sRGB's curve


def test_profiles_close_to_srgb_change_nothing():
    same = profile()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8))
    assert np.array_equal(
        decode.decode_image(files.encode(image, "PNG", icc_profile=same), what="x"), np.asarray(image)
    )


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_profiles_in_every_mode(mode):
    image = Image.new("RGB", (2, 1), (55, 128, 200))
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    assert image.mode == mode
    assert np.abs(np.subtract(read(files.encode(image, "PNG", icc_profile=LINEAR)), [128, 188, 229])).max() <= 3


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_profiles(mode):
    image = Image.fromarray(np.full((1, 2), 55 * 257, np.uint16)) if mode == "I;16" else Image.new("L", (2, 1), 55)
    image = image.convert("LA") if mode == "LA" else image
    for icc, wanted in ((_grey_profile(), 128), (LINEAR, 55), (b"nonsense", 55)):
        assert np.abs(np.subtract(read(files.encode(image, "PNG", icc_profile=icc)), wanted)).max() <= 2


def test_lab():
    lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    image = ImageCms.applyTransform(Image.new("RGB", (1, 1), (200, 100, 50)), lab)
    assert np.abs(np.subtract(read(files.encode(image, "TIFF"))[0], [200, 100, 50])).max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "LAB", "I;16", "I", "F"])
def test_bands_equal_the_whole(mode, monkeypatch):
    rng = np.random.default_rng(0)
    if mode in ("I;16", "I", "F"):
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray((rng.random((50, 7)) * (1 if mode == "F" else 65535)).astype(dtype))
    else:
        image = Image.fromarray(rng.integers(0, 256, (50, 7, 3), np.uint8))
        image = image.convert("P").convert("PA") if mode == "PA" else image.convert("RGB" if mode == "LAB" else mode)
    if mode == "LAB":
        image = Image.merge("LAB", image.split())
    opened = opening.open_image(files.encode(image, "TIFF"), what="x")
    whole = np.asarray(colours.srgb(opened))
    monkeypatch.setattr(colours, "_BAND", 30)
    assert whole.shape == (50, 7, 3) and np.array_equal(colours.pixels(opened)[0], whole)
    assert opened.deep == (mode in ("I;16", "I", "F"))


def test_rounding_of_16_bits():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = decode.decode_image(files.encode(Image.fromarray(values), "PNG"), what="x")
    assert np.array_equal(found[..., 0], np.rint(values / 257).astype(np.uint8))
