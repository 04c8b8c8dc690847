# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Decoding: orientation, colour profiles, deep and rare pixel formats, and sizes from headers."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from uso_jax.common.errors import BadExample, InputError
from uso_jax.data import buckets
from uso_jax.images import decode, opening
from uso_jax.training.stage import StageConfig


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def swapped_profile():
    """Return an sRGB colour profile with the tags of red and blue exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    names = {}
    for number in range(struct.unpack_from(">I", data, 128)[0]):
        at = 132 + 12 * number
        names[bytes(data[at : at + 4])] = at
    red, blue = names[b"rXYZ"], names[b"bXYZ"]
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    # Tags may be sorted by readers; the description must not say sRGB.
    return bytes(data).replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be")).replace(b"sRGB", b"test", 0)


def test_colour_profile_is_applied():
    red = Image.new("RGB", (4, 3), (250, 10, 10))
    plain = decode.decode_image(encoded(red), what="red")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(decode.decode_image(encoded(red, icc_profile=srgb), what="red"), plain)
    other = decode.decode_image(encoded(red, icc_profile=swapped_profile()), what="red")
    assert np.abs(other[0, 0].astype(int) - (10, 10, 250)).max() < 4
    assert np.array_equal(decode.decode_image(encoded(red, icc_profile=b"nonsense"), what="red"), plain)


def test_deep_and_rare_formats():
    levels = np.array([[0, 257, 65535], [128 * 257, 1000, 65000]], np.uint16)
    deep = decode.decode_image(encoded(Image.fromarray(levels)), what="deep")
    assert np.array_equal(deep, np.repeat(np.round(levels / 257).astype(np.uint8)[..., None], 3, axis=2))
    white = decode.decode_image(encoded(Image.new("CMYK", (4, 3), (0, 0, 0, 0)), "JPEG"), what="cmyk")
    assert white.shape == (3, 4, 3) and white.min() > 250
    grey = decode.decode_image(encoded(Image.new("L", (4, 3), 77)), what="grey")
    assert (grey == 77).all()
    palette = Image.new("P", (4, 3), 0)
    palette.putpalette([9, 8, 7] * 256)
    assert (decode.decode_image(encoded(palette), what="palette") == (9, 8, 7)).all()


def test_size_needs_the_header_only():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 60, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for data, size in (
        (encoded(noise), (90, 60)),
        (encoded(noise, "JPEG"), (90, 60)),
        (encoded(noise, "JPEG", exif=exif), (60, 90)),
    ):
        assert opening.image_size(data[: len(data) // 2], what="x") == size
        assert decode.decode_image(data, what="x").shape[:2] == size
        with pytest.raises(BadExample, match="x cannot be decoded"):
            decode.decode_image(data[: len(data) // 2], what="x")


def test_decompression_bomb_is_refused_by_its_header():
    bomb = encoded(Image.new("1", (9000, 9000)))
    assert len(bomb) < 20_000
    for look in (decode.decode_image, opening.image_size):
        with pytest.raises(BadExample, match=r"has 9000 x 9000 pixels; the limit is 64000000"):
            look(bomb, what="bomb")


# ---------------------------------------------------------------------------------------------------- buckets


def test_the_sizes_of_uno():
    assert len(buckets.UNO) == 11 and {(w, h) for h, w in buckets.UNO} == set(buckets.UNO)
    assert buckets.sizes(buckets.UNO, (512, 512), 16) == buckets.UNO
    larger = buckets.sizes(buckets.UNO, (1024, 1024), 16)
    assert (1024, 1024) in larger and (1536, 512) in larger and len(larger) == 11
    assert all(side % 16 == 0 for size in buckets.sizes(buckets.UNO, (768, 768), 16) for side in size)
    assert buckets.sizes((), (768, 512), 16) == ((768, 512),)


def test_rare_shapes_join_the_most_similar():
    found = np.array([[512, 512, 512, 512]] * 8 + [[768, 320, 512, 512]] * 5 + [[768, 256, 0, 0]] * 2 + [[0, 0, 9, 9]])
    shared = buckets.assign(found.astype(np.int32), buckets.UNO, buckets.UNO, 4)
    square, tall = ((512, 512), (512, 512)), ((768, 320), (512, 512))
    assert {shape: list(indices) for shape, indices in shared.items()} == {
        square: [*range(8), 15],  # the unknown one goes to the commonest
        tall: list(range(8, 15)),
    }
    assert buckets.assign(found[:8].astype(np.int32), buckets.UNO, buckets.UNO, 4) == {square: None}


def test_no_target_is_scaled_up_where_a_smaller_area_exists():
    aspects, areas = ((512, 512), (384, 640)), (512, 768)
    stage = StageConfig("a", target_size=(1024, 1024), target_aspects=aspects, target_areas=areas)
    sizes = stage.bucket_sizes(16)
    middle, small = ((768, 768), (576, 960)), ((512, 512), (384, 640))
    assert sizes["smaller_sizes"] == (middle, small)
    assert "smaller_sizes" not in StageConfig("a").bucket_sizes(16)
    wide = StageConfig("a", target_size=(768, 1536), target_areas=(512,))
    assert wide.bucket_sizes(16)["smaller_sizes"] == (((352, 720),),)
    found = [(1024, 1024), (3000, 2000), (1023, 1100), (600, 960), (600, 959), (100, 100)]
    large = sizes["target_sizes"]
    expected = [large[0], large[0], middle[0], middle[1], small[1], small[0]]
    rows = np.array([[*size, 64, 64] for size in found for _ in range(4)], np.int32)
    shared = buckets.assign(rows, large, ((64, 64),), 4, sizes["smaller_sizes"])
    homes = {int(index): shape[0] for shape, indices in shared.items() for index in indices}
    assert [homes[4 * number] for number in range(len(found))] == expected
    # A shape too rare for a batch joins one that does not scale it up, even if another has its aspect.
    rare = np.concatenate([rows[:4], rows[12:13], rows[16:20]])
    shared = buckets.assign(rare, large, ((64, 64),), 4, sizes["smaller_sizes"])
    assert {shape[0]: list(i) for shape, i in shared.items()} == {large[0]: [0, 1, 2, 3], small[1]: [4, 5, 6, 7, 8]}
    assert stage.at_size(512, 512).target_areas == ()
    with pytest.raises(InputError, match=r"target_areas \(1024,\) must be .* smaller than target_size 1024x1024"):
        StageConfig("a", target_size=(1024, 1024), target_areas=(1024,))
