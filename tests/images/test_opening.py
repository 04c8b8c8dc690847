# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The one way in for images: formats, limits, orientation in header and pixels, damaged files."""

import ast
import os
import pathlib
import struct
import subprocess
import sys
import zlib

import encoded_images as files
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from uso_jax.common.errors import BadExample
from uso_jax.data.storage.places import Place
from uso_jax.images import decode, opening

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("uso_jax", "convert", "scripts", "configs")
MIB = 1 << 20
few = settings(max_examples=60, deadline=None, derandomize=True, database=None)
ignore_warnings = pytest.mark.filterwarnings("ignore::UserWarning")  # of PIL, about damaged files


def test_only_one_module_opens_images():
    calls = []
    for path in (path for name in PACKAGES for path in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name.endswith("Image.open") or name in ("ImageFile.Parser", "plt.imread", "imread"):
                calls.append((path.relative_to(ROOT).as_posix(), {k.arg for k in node.keywords}))
    assert calls and all(call == ("uso_jax/images/opening.py", {"formats"}) for call in calls)


@pytest.mark.parametrize("look", [opening.open_image, opening.image_size])
def test_eps_starts_no_program(look, tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nexit 1\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(BadExample, match=r"x cannot be decoded \(unknown image format; PNG, JPEG.* are read\)"):
        look(eps, what="x")
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("kind", ["ICO", "PPM", "TGA", "PCX", "SGI", "ICNS", "JPEG2000", "PDF"])
def test_formats_that_are_not_on_the_list(kind):
    data = files.encode(Image.new("RGB", (32, 32)), kind)
    with pytest.raises(BadExample, match="unknown image format"):
        opening.open_image(data, what="x")


@pytest.mark.parametrize("look", [opening.open_image, opening.image_size])
def test_only_regular_files_are_read(look, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, pathlib.Path("/dev/zero")):
        with pytest.raises(BadExample, match="x is not a file"):
            look(path, what="x")
    with pytest.raises(BadExample, match="x does not exist"):
        look(tmp_path / "absent.png", what="x")


# ------------------------------------------------------------------------------------------------- orientation


@few
@given(st.sampled_from(files.ORIENTED), st.integers(1, 8), st.integers(1, 70), st.integers(1, 70))
def test_header_and_pixels_agree(kind, orientation, width, height):
    image = Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))
    data = files.encode(image, kind, orientation)
    plain = decode.decode_image(files.encode(image, kind, 1), what="x")
    found = decode.decode_image(data, what="x")
    wanted = Image.fromarray(plain).transpose(opening._TURNS[orientation]) if orientation > 1 else plain
    assert kind == "HEIF" or np.array_equal(found, np.asarray(wanted))  # which turns halved colour planes differently
    assert found.shape == np.asarray(wanted).shape
    assert opening.image_size(data, what="x") == found.shape[:2]
    assert kind in ("HEIF", "TIFF") or opening.open_image(data, what="x").orientation == orientation


def test_orientation_after_the_pixels_of_a_png(tmp_path):
    early = files.encode(Image.new("RGB", (640, 480), "red"), "PNG", 6)
    at = early.index(b"eXIf") - 4
    chunk = early[at : at + 12 + struct.unpack_from(">L", early, at)[0]]
    text = files.chunk(b"tEXt", b"k\0" + b"x" * 80_000)
    late = early.replace(chunk, b"").replace(b"\0\0\0\0IEND", text + chunk + b"\0\0\0\0IEND")
    assert opening.image_size(late, what="x") == decode.decode_image(late, what="x").shape[:2] == (640, 480)
    (tmp_path / "late.png").write_bytes(late)
    assert Place(str(tmp_path / "late.png")).size() == (640, 480)
    with pytest.raises(BadExample, match="does not tell which way up"):
        opening.image_size(late[:70_000], what="x", whole=False)
    assert opening.image_size(early[:9000], what="x", whole=False) == (640, 480)


def test_an_invalid_orientation_is_ignored():
    for value in (0, 9, 300, -1):
        data = files.encode(Image.new("RGB", (8, 4)), "PNG", value & 0xFFFF)
        assert opening.image_size(data, what="x") == decode.decode_image(data, what="x").shape[:2] == (4, 8)


# ------------------------------------------------------------------------------------------------ damaged files


@ignore_warnings
@few
@given(st.sampled_from(files.KINDS), st.data())
def test_damage_is_an_image_or_a_sentence(kind, data):
    whole = bytearray(files.sample(kind))
    for _ in range(data.draw(st.integers(0, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    sizes = set()
    for look in (opening.image_size, lambda d, what: decode.read_image(d, what=what)[0].shape[:2]):
        try:
            sizes.add(look(damaged, what="the image x"))
        except BadExample as error:
            assert str(error).startswith("the image x ") and "0x7" not in str(error)
    assert len(sizes) < 2


# -------------------------------------------------------------------------------------------------------- bombs


def _shared_tags(count: int, size: int) -> bytes:
    """Return a TIFF block whose tags all have the same bytes as their value."""
    entries = b"".join(struct.pack("<HHLL", tag, 7, size, 14 + 12 * count) for tag in range(300, 300 + count))
    return b"II*\0" + struct.pack("<LH", 8, count) + entries + bytes(4 + size)


def _one_tile(side: int) -> bytes:
    """Return a TIFF of 10 x 10 pixels in one tile of side x side."""
    data = zlib.compress(bytes(side * side))
    values = {256: 10, 257: 10, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 150, 325: len(data)}
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in values.items())
    return (b"II*\0" + struct.pack("<LH", 8, len(values)) + entries).ljust(150, b"\0") + data


def _offsets(count: int) -> bytes:
    """Return a TIFF with a list of strips that is far longer than its image."""
    entries = struct.pack("<HHLL", 273, 4, count, 64) + struct.pack("<HHLL", 279, 4, count, 64)
    return b"II*\0" + struct.pack("<LH", 8, 2) + entries + bytes(4 * count + 100)


BOMBS = {
    "pixels": (lambda: files.png(16, 0, [bytes(15998)] * 8000, 7999), "has 7999 x 8000 pixels"),
    "tags": (lambda: _shared_tags(30_000, MIB), "damaged tags"),
    "exif": (lambda: files.png(8, 0, [bytes(9)], 9, files.chunk(b"eXIf", _shared_tags(30_000, MIB))), "damaged tags"),
    "strips": (lambda: _offsets(2_000_000), "damaged tags"),
    "tile": (lambda: _one_tile(6000), "has tiles of 6000 x 6000 pixels"),
    "bytes": (lambda: bytes(33 * MIB), "bytes; the limit is 33554432"),
    "text": (lambda: files.png(8, 0, [bytes(9)], 9, files.chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(9 * MIB))) * 9),
             "cannot be decoded"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_by_their_header(name):
    make, fragment = BOMBS[name]
    with pytest.raises(BadExample, match=fragment):
        opening.open_image(make(), what="x", limits=opening.UPLOADS)


_PEAK = """
import sys
from uso_jax.images import decode, opening
def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) >> 10
for path in sys.argv[1:]:
    data = opening.read_file(path, what=path)
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    try:
        decode.read_image(data, what="x", limits=opening.UPLOADS)
    except opening.BadExample:
        pass
    print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="measures memory by Linux's /proc")
def test_memory_of_the_largest_uploads(tmp_path):
    side = 3549
    large = {
        "rgba": files.png(16, 6, [bytes(8 * side)] * side, side),
        "hidden": files.png(16, 2, [bytes(6 * side)] * side, side, files.chunk(b"tRNS", bytes(6))),
        "progressive": files.encode(Image.new("CMYK", (side, side)), "JPEG", progressive=True, subsampling=0),
        "webp": files.encode(Image.new("RGBA", (side, side)), "WEBP"),
        "avif": files.encode(Image.new("RGBA", (side, side)), "AVIF", speed=10),
        "turned": files.encode(Image.new("RGB", (side, side)), "JPEG", 6),
        "tiff": files.encode(Image.new("F", (side, side)), "TIFF", compression="tiff_adobe_deflate"),
    } | {name: make() for name, (make, _) in BOMBS.items()}
    for name, data in large.items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", _PEAK, *(tmp_path / name for name in large)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=120)
    peaks = dict(zip(large, map(int, found.stdout.split()), strict=True))
    assert max(peaks.values()) < 230, peaks
