# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Lists of items to generate, as users have them: lists and lines, paths of Windows, upstream's examples, odd text."""

import json

import pytest
from PIL import Image

from uso_jax.common.errors import InputError
from uso_jax.inference import batch_jobs


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name)
    return tmp_path


def read(folder, text, name="items.json"):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return batch_jobs.read_items(folder / name)


@pytest.mark.parametrize("name", ["items.json", "items.JSONL", "items.jsonl", "items.txt"])
@pytest.mark.parametrize("form", ["list", "lines"])
def test_a_list_and_lines_under_any_name(folder, name, form):
    rows = [json.dumps({"prompt": f"a\u2028cat {n}"}, ensure_ascii=False) for n in range(2)]
    text = f"\ufeff[{','.join(rows)}]" if form == "list" else "\ufeff" + "\r\n".join(rows)
    assert [item.prompt for item in read(folder, text, name)] == ["a\u2028cat 0", "a\u2028cat 1"]


def test_paths_of_windows(folder):
    item = {"prompt": "x", "image_paths": ["images\\a.png", ".\\images\\b.png"], "save_dir": "sub\\one"}
    (found,) = read(folder, json.dumps([item]))
    assert found.save_dir == "sub/one" and [str(path).endswith("images/a.png") for path in found.contents] == [True]
    with pytest.raises(InputError, match=r"item 0: 'C:.*drive letter"):
        read(folder, json.dumps([item | {"image_paths": ["C:\\images\\a.png"]}]))
    for place in ("..\\x", "C:\\x", "\\x", "a\\..\\..\\x"):
        with pytest.raises(InputError, match="save_dir"):
            read(folder, json.dumps([item | {"save_dir": place}]))


def test_the_config_of_an_example_of_upstream(folder):
    config = {"prompt": "x", "image_ref1": "images/a.png", "image_ref2": "images/b.png", "seed": 3407, "useage": "u"}
    (found,) = read(folder, json.dumps(config, indent=2), "config.json")
    assert (len(found.contents), len(found.styles), found.options) == (1, 1, {"seed": 3407})
    (found,) = read(folder, json.dumps({"prompt": "x", "image_ref2": "images/b.png"}), "config.json")
    assert (len(found.contents), len(found.styles)) == (0, 1)
    with pytest.raises(InputError, match="has image_paths and image_ref1; remove one"):
        read(folder, json.dumps(config | {"image_paths": []}), "config.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (rb'[{"prompt": "half \ud83d"}]', "half of a character"),
        (rb'[{"prompt": "a\u0000b"}]', "NUL"),
        ('[{"prompt": "caf\u00e9"}]'.encode("latin-1"), "not UTF-8"),
        (b'[{"prompt": "a"}, 3]', "item 1"),
        (b'{"prompt": "a"}\n{"prompt": \n', r"items\.json line 2"),
        (b"[]", "has no items"),
        (b"", "not valid JSON"),
        (json.dumps([{"prompt": "a" * 100_000}]).encode(), "larger than 65536"),
    ],
)
def test_damage_is_one_sentence(folder, text, words):
    with pytest.raises(InputError, match=words):
        read(folder, text)


def test_half_an_emoji_on_the_command_line_is_one_sentence():
    for prompt in ("a \ud83d", "caf\udce9"):
        with pytest.raises(InputError, match="the prompt holds half of a character"):
            batch_jobs.parse_item({"prompt": prompt})
