# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Triplets from JSON lists: both schemas, orientation, and errors that name file and item."""

import hashlib
import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.data.sources import open_source


def JsonSource(path):
    return open_source({"name": "json", "path": path})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for value, name in enumerate(("a.png", "b.png", "c.png")):
        Image.new("RGB", (6, 4), (value, 0, 0)).save(tmp_path / "images" / name)
    return tmp_path


def write(folder, items):
    path = folder / "triplets.json"
    path.write_text(items if isinstance(items, str) else json.dumps(items))
    return path


def test_own_schema(folder):
    item = {"content": "images/a.png", "styles": ["images/b.png"], "target": "images/c.png"}
    source = JsonSource(
        write(folder, [item, item | {"prompt": "a cat"}, {"prompt": "a cat", "target": "images/c.png"}])
    )
    assert len(source) == 3
    first, second, third = (source[index] for index in range(3))
    assert (first.prompt, first.layout, first.task) == ("", "preserved", "style_subject")
    assert (second.prompt, second.layout, third.task) == ("a cat", "shifted", "text")
    assert (first.content[0, 0, 0], first.styles[0][0, 0, 0], first.target[0, 0, 0]) == (0, 1, 2)
    assert first.target.shape == (4, 6, 3)


def test_uno_schema(folder):
    a, b, c = (f"images/{name}.png" for name in "abc")
    items = [
        {"prompt": "x", "image_paths": [a, b], "image_tgt_path": c},
        {"prompt": "x", "image_paths": ["", b], "image_tgt_path": c},
        {"prompt": "x", "image_path": a, "image_tgt_path": c},
    ]
    source = JsonSource(write(folder, items))
    assert [source[index].task for index in range(3)] == ["style_subject", "style", "subject"]


def test_orientation_and_transparency(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (6, 4)).save(folder / "turned.jpg", exif=exif)
    Image.new("RGBA", (6, 4), (0, 0, 0, 0)).save(folder / "clear.png")
    source = JsonSource(write(folder, [{"prompt": "x", "content": "turned.jpg", "target": "clear.png"}]))
    assert source[0].content.shape == (6, 4, 3)
    assert np.all(source[0].target == 255)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "at least one item"),
        ({}, "at least one item"),
        ("[{", "not valid JSON"),
        ([{"prompt": "x", "target": "t.png"}, 3], "item 1 is not a JSON object"),
        ([{"prompt": "x"}], 'item 0 has no "target"'),
        ([{"prompt": "x", "target": "t.png", "style": "s.png"}], "item 0 has unknown keys style"),
        ([{"prompt": "x", "target": "t.png", "styles": "s.png"}], '"styles" must be a list'),
        ([{"prompt": 3, "target": "t.png"}], "the prompt must be text, not int"),
        ([{"target": "t.png", "styles": ["s.png"]}], "needs a prompt"),
        ([{"prompt": "x", "target": "t.png", "layout": "same"}], "layout is 'same'"),
    ],
)
def test_wrong_files(folder, items, message):
    with pytest.raises(InputError, match=message):
        JsonSource(write(folder, items))


def test_many_items_take_little_memory(folder, monkeypatch):
    count = 2_000
    monkeypatch.setattr(untrusted, "PIECE", 1 << 14)
    JsonSource(write(folder, [{"prompt": "x", "target": "c.png"}]))  # its imports
    path = write(folder, [
        {"prompt": f"a cat on mat {n}", "content": f"images/{n}/a.png", "target": f"images/{n}/c.png", "key": f"k{n}"}
        for n in range(count)
    ])  # fmt: skip
    tracemalloc.start()
    source = JsonSource(path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300 * count and kept < 100 * count  # bytes
    for number in (0, 63, 64, count - 1):
        item = source.item(number)
        assert (item.key, item.prompt) == (f"k{number}", f"a cat on mat {number}")


def test_rows_keep_their_digest(folder):
    item = {"prompt": "a cat é\n", "content": "images/a.png", "styles": ["images/./b.png"], "target": "images//c.png"}
    source = JsonSource(
        write(folder, [item, {"target": "images/c.png", "key": "k", "prompt": "x", "meta": {"s": 1e20}}])
    )
    place = lambda name: [f"{folder}/images/{name}.png"]
    rows = [
        ["0", "a cat é\n", "shifted", place("a"), [place("b")], place("c"), {}],
        ["k", "x", "shifted", None, [], place("c"), {"s": 1e20}],
    ]
    text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows).encode()
    text += f"0 {(folder / 'images/c.png').stat().st_size} 1 {(folder / 'images/c.png').stat().st_size} ".encode()
    assert source.digest() == hashlib.sha256(text).hexdigest()[:16]


def test_two_items_with_one_key(folder):
    items = [{"prompt": "x", "target": "images/c.png", "key": key} for key in ("a", "b", "1", "a")]
    with pytest.raises(InputError, match="two triplets have the key 'a'"):
        JsonSource(write(folder, items))
    with pytest.raises(InputError, match="two triplets have the key '1'"):  # the number of the item without a key
        JsonSource(write(folder, [items[2], {"prompt": "x", "target": "images/c.png"}]))


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.json does not exist"):
        JsonSource(tmp_path / "nothing.json")


@pytest.mark.parametrize("damage", ["text", "cut", "huge"])
def test_image_that_does_not_decode_names_file_and_item(folder, damage):
    path = folder / "images" / "b.png"
    if damage == "huge":
        Image.new("1", (9000, 9000)).save(path)
    else:
        path.write_bytes(b"no image" if damage == "text" else path.read_bytes()[:-40])
    target = {"prompt": "x", "target": "images/b.png"}
    source = JsonSource(write(folder, [target, target]))
    with pytest.raises(InputError, match=r"images/b\.png \(item 1 of .*triplets\.json\)"):
        source[1]
    with pytest.raises(InputError, match=r"absent\.png .* does not exist"):
        JsonSource(write(folder, [target | {"target": "absent.png"}]))[0]
