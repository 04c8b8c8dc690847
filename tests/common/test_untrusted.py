# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Text from outside: damages become an InputError that names file and line; everything else is the value it is."""

import json
import os
import tracemalloc
from typing import Any, Literal, NotRequired, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError

SEPARATORS = "\u2028\u2029\u0085\v\f\x1c\x1d\x1e\r"  # where `str.splitlines` splits too
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
CHECKED = settings(deadline=None, max_examples=60, derandomize=True)


def items(*args, **kwargs):
    return [item for _, item in untrusted.json_items(*args, **kwargs)]


class Row(TypedDict):
    key: str
    score: NotRequired[float]


@CHECKED
@given(VALUES, st.booleans(), st.booleans())
def test_json_is_the_value_it_is(value, ascii_only, mark):
    data = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert untrusted.json(b"\xef\xbb\xbf" * mark + data) == value


@CHECKED
@given(st.lists(TEXT, min_size=1), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_json_lines_end_at_line_feeds_only(tmp_path_factory, texts, end, mark):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    texts = [text + SEPARATORS[1:3] for text in texts]
    data = "".join(json.dumps({"text": text}, ensure_ascii=False) + end for text in texts)
    path.write_bytes(b"\xef\xbb\xbf" * mark + data.encode())
    expected = [{"text": text} for text in texts]
    assert [value for _, value in untrusted.json_lines(path)] == expected
    assert items(path) == expected


@CHECKED
@given(st.binary(max_size=60))
def test_bytes_are_a_value_or_one_sentence(data):
    for read in (untrusted.text, untrusted.json, items):
        try:
            read(data, where="a.json")
        except InputError as error:
            assert str(error).startswith("a.json") and "\n" not in str(error)


DAMAGES = {
    "empty": (b"", "line|column"),
    "cut": (b'{"a":\n [1,', "line 2"),
    "half an emoji": (rb'{"a": "cat \ud83d"}', "D83D after 'cat '"),
    "half an emoji as a key": (rb'[{"\udc00": 1}]', "DC00"),
    "escaped NUL": (rb'["a\u0000b"]', "NUL"),
    "NUL hole": (b'{"a":\n' + b"\0" * 4096, "line 2"),
    "latin-1": ('{"a":\n "é"}'.encode("latin-1"), "0xe9 in line 2"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "UTF-8"),
    "twice": (b'[{"a": 1, "a": 2}]', "'a' occurs twice"),
    "NaN": (b'{"a": NaN}', "NaN"),
    "Infinity": (b"[-Infinity]", "Infinity"),
    "too large": (b"[1e999]", "1e999"),
    "endless digits": (b"1" * 6000, "64 bits"),
    "65 bits": (b"18446744073709551616", "64 bits"),
    "nested": (b"[" * 65 + b"]" * 65, "64 levels"),
    "nested objects": (b'{"a":' * 100_000, "64 levels"),
    "two values": (b'{"a": 1} {"a": 2}', "Extra data"),
    "single quotes": (b"{'a': 1}", "column 2"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damages_of_json(tmp_path, monkeypatch, name):
    data, words = DAMAGES[name]
    path = tmp_path / "a.json"
    path.write_bytes(data)
    for read, piece in ((untrusted.json, 1), (items, 1 << 20), (items, max(3, len(data) // 50))):
        monkeypatch.setattr(untrusted, "PIECE", piece)
        with pytest.raises(InputError, match=rf"a\.json.*({words}).*; write it again") as caught:
            read(path, remedy="write it again")
        assert "\n" not in str(caught.value)


LIST = json.dumps(
    [
        {"a": 'é\U0001f600\\ "\n[{', "b": [1.5e-7, -12, True, None, {}]},
        [],
        1234567,
        "x",
        False,
        {"c": {"d": [[]]}},
        -0.5,
    ],
    indent=3,
    ensure_ascii=False,
)


def told(text, piece, monkeypatch):
    monkeypatch.setattr(untrusted, "PIECE", piece)
    try:
        return list(untrusted.json_items(text.encode("utf-8", "surrogatepass"), Any, "a.json"))
    except InputError as error:
        return str(error)


def test_a_list_in_pieces_is_the_list(monkeypatch):
    for text in (LIST, "\ufeff" + json.dumps(json.loads(LIST)), " [ ] \n", "[1]"):
        expected = json.loads(text.removeprefix("\ufeff"))
        for piece in (1, 2, 7, 1 << 20):
            assert told(text, piece, monkeypatch) == [(f"a.json, item {n}", one) for n, one in enumerate(expected)]


def test_damages_of_a_list_in_pieces_are_the_same(monkeypatch):
    damaged = [LIST[:end] for end in range(6, len(LIST), 3)]
    damaged += [LIST[:place] + wrong + LIST[place:] for place in range(1, len(LIST), 9) for wrong in ("]", "{", "\t,")]
    for text in damaged:
        whole = told(text, 1 << 20, monkeypatch)
        assert told(text, 2, monkeypatch) == told(text, 11, monkeypatch) == whole
        try:
            expected = [(f"a.json, item {n}", item) for n, item in enumerate(untrusted.json(text, list))]
        except InputError as error:
            expected = str(error).replace("the text", "a.json")
        assert whole == expected, text


def test_a_list_is_never_whole_in_memory(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    monkeypatch.setattr(untrusted, "PIECE", 1 << 14)
    path.write_text(json.dumps([{"prompt": f"a fox {n} " + "x" * 200} for n in range(3_000)]))
    tracemalloc.start()
    assert sum(1 for _ in untrusted.json_items(path)) == 3_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 2


def test_deep_enough():
    value: Any = 1
    for _ in range(64):
        value = [value]
    assert untrusted.json(json.dumps(value)) == value
    assert len(untrusted.json(json.dumps([[{"a": 1}]] * 100))) == 100


def test_numbers_that_are_none_where_asked_for():
    assert untrusted.json("[Infinity]", nan=True) == [float("inf")]


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        (Row, '{"key": "a", "score": 1, "more": null}', {"key": "a", "score": 1.0, "more": None}),
        (list[int], "[1, 2]", [1, 2]),
        (dict[str, list[str]], '{"a": ["b"]}', {"a": ["b"]}),
        (tuple[int, str], '[1, "a"]', (1, "a")),
        (str | int | None, "1", 1),
        (Literal["a", 1], '"a"', "a"),
        (dict, "{}", {}),
        (list, "[1]", [1]),
    ],
)
def test_schemas(schema, text, value):
    assert untrusted.json(text, schema) == value


@pytest.mark.parametrize(
    ("schema", "text", "words"),
    [
        (Row, '{"score": 1.0}', "has no 'key'"),
        (Row, '{"key": 1}', r"x\.key: 1 is not text"),
        (Row, "[]", "is not an object"),
        (dict, "null", "None is not an object"),
        (list, "{}", "is not a list"),
        (list[int], "[1, true]", r"x\[1\]: True is not a whole number"),
        (dict[str, int], '{"a": 1.0}', r"x\.a: 1.0 is not a whole number"),
        (Literal["a", 1], "true", "one of a, 1"),
        (str | int, "1.5", "1.5 is not text or a whole number"),
        (str, json.dumps(["long" * 100]), r"lo\.\.\. is not text"),
    ],
)
def test_values_that_a_schema_refuses(schema, text, words):
    with pytest.raises(InputError, match=words):
        untrusted.json(text, schema, "x")


def test_a_list_is_one_by_its_content(tmp_path):
    path = tmp_path / "a.json"
    for data in (b'[{"a": 1}, {"a": 2}]', b'{"a": 1}\r\n\r\n{"a": 2}\r\n', b'\xef\xbb\xbf{"a": 1}\n{"a": 2}'):
        path.write_bytes(data)
        assert items(path) == [{"a": 1}, {"a": 2}]
    path.write_bytes(b'{\n "a": {\n  "b": 1}\n}\n')
    assert items(path) == [{"a": {"b": 1}}]
    path.write_bytes(b'{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(InputError, match=r"a\.json line 2 is not valid JSON"):
        items(path)
    path.write_bytes(b'[{"a": 1}, 2]')
    with pytest.raises(InputError, match=r"a\.json, item 1: 2 is not an object"):
        items(path)


def test_damaged_lines_are_told_and_skipped(tmp_path):
    path, told = tmp_path / "log.jsonl", []
    path.write_bytes(b'{"key": "a"}\n' + b"\0" * 100 + b'\n{"key": "b"}\nnull\n{"key": "c"}\n{"key": "d')
    rows = list(untrusted.json_lines(path, Row, damaged=told.append))
    assert rows == [(1, {"key": "a"}), (3, {"key": "b"}), (5, {"key": "c"})]
    assert [f"line {n}" in str(error) for n, error in zip((2, 4, 6), told, strict=True)] == [True] * 3
    with pytest.raises(InputError, match=r"log\.jsonl line 2.*NUL.*; fix that line"):
        list(untrusted.json_lines(path, Row))


def test_files_that_are_no_text(tmp_path):
    with pytest.raises(InputError, match=r"a\.txt does not exist"):
        untrusted.text(tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"^run score first$"):
        list(untrusted.json_lines(tmp_path / "a.txt", missing="run score first"))
    with pytest.raises(InputError, match="is not a file"):
        untrusted.text(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="fifo is not a file"):
        untrusted.json(tmp_path / "fifo")
    (tmp_path / "a.txt").write_bytes(b"12345")
    with pytest.raises(InputError, match="larger than 4 bytes"):
        untrusted.text(tmp_path / "a.txt", limit=4)
    name = os.fsdecode(bytes(tmp_path) + b"/caf\xe9.txt")
    with pytest.raises(InputError, match=r"caf\\xe9\.txt does not exist"):
        untrusted.text(type(tmp_path)(name))


def test_text():
    assert untrusted.text(b"\xef\xbb\xbfa\r\nb") == "a\nb"
    with pytest.raises(InputError, match=r"the prompt holds half of a character.*D83D"):
        untrusted.text("a \ud83d", "the prompt")
    with pytest.raises(InputError, match="0x92 in line 2"):
        untrusted.text("a\nit\u2019s".encode("cp1252"))


def test_names_of_files_are_recorded_as_printable_text():
    name = os.fsdecode(b"caf\xe9 \xf0\x9f\x98\x80")
    assert untrusted.printable(name) == rb"caf\xe9 \U0001f600".decode("unicode_escape").replace("\xe9", r"\xe9")
    value = untrusted.recorded({"path": name, "size": (1, 2), "prompt": "\U0001f600 é"})
    assert value == {"path": untrusted.printable(name), "size": [1, 2], "prompt": "\U0001f600 é"}
    assert untrusted.json(json.dumps(value)) == value


@CHECKED
@given(st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"])), max_size=5))
def test_lines(parts):
    parts = [part + SEPARATORS[:3] for part in parts]
    assert untrusted.lines("".join(part + "\n" for part in parts)) == parts
    assert untrusted.lines("\r\n".join(parts)) == parts
