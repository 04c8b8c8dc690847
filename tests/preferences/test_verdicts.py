# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The log of verdicts: nothing is lost by kills and other writers, and nonsense is left out."""

import concurrent.futures

import pytest

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.preferences.verdicts import Verdicts


def test_verdicts_stand_until_they_are_taken_back(tmp_path):
    log = Verdicts(tmp_path)
    assert log.read() == []
    first, second = log.add("s/0/0/a", "s/0/1/b", "left"), log.add("s/0/0/a", "s/0/2/c", "neither")
    assert Verdicts(tmp_path).read() == [first, second] and second.better == "neither"
    log.undo(first)
    log.undo(first)
    assert log.read() == [second]
    assert log.add("s/0/0/a", "s/0/1/b", "right").pair == first.pair


@pytest.mark.parametrize("torn", [b'{"id": "12', b"\0\0\0", b'{"undo": "1'])
def test_what_a_kill_leaves_is_ended_and_skipped(tmp_path, torn):
    log = Verdicts(tmp_path)
    first = log.add("a", "b", "left")
    with log.path.open("ab") as file:
        file.write(torn)
    second, errors = log.add("a", "c", "right"), []
    assert log.read(errors.append) == [first, second]
    assert len(errors) == 1 and "line 2" in str(errors[0])


def test_several_writers_do_not_mix_lines(tmp_path):
    logs = [Verdicts(tmp_path) for _ in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda i: logs[i % 4].add(f"a{i}", f"b{i}", "left"), range(200)))
    errors = []
    assert {one.id for one in logs[0].read(errors.append)} == {one.id for one in made} and not errors


@pytest.mark.parametrize(
    "line",
    ["[]", "{}", '{"id": "1", "left": "a", "right": "a", "better": "left"}', '{"id": "1", "left": "a", "right": 3}',
     '{"id": "1", "left": "a", "right": "b", "better": "both"}', '{"id": "1", "left": "a", "right": "b"}'],
)  # fmt: skip
def test_nonsense_is_skipped_and_named(tmp_path, line):
    log, errors = Verdicts(tmp_path), []
    log.path.write_text(f"{line}\n")
    assert log.read(errors.append) == log.read() == []
    assert len(errors) == 1 and "line 1" in str(errors[0])


def test_a_huge_file_is_refused(tmp_path, monkeypatch):
    log = Verdicts(tmp_path)
    log.add("a", "b", "left")
    monkeypatch.setattr(untrusted, "LIMIT", 10)
    with pytest.raises(InputError, match=r"preferences\.jsonl has \d+ bytes, the limit is 10"):
        log.read()


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    log = Verdicts(tmp_path / "missing")
    with pytest.raises(InputError, match=r"cannot write .*not kept"):
        log.add("a", "b", "left")
