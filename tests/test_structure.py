# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tests mirror the packages and do not import one another; shared code lies in tests/helpers."""

import ast
import pathlib

from import_graph import imported_names

ROOT = pathlib.Path(__file__).parents[1]
TESTS = ROOT / "tests"
# Files that read JSON themselves: what the same process has written a moment ago.
OWN_JSON = {
    "uso_jax/common/untrusted.py",  # the way in
    "uso_jax/common/strict_json.py",  # its decoder
    "uso_jax/data/readers/source.py",  # rows in memory
    "uso_jax/hardware/peers.py",  # between the processes of one run
}


def test_no_test_is_imported():
    tests = {path.stem for path in TESTS.rglob("test_*.py")}
    for path in TESTS.rglob("*.py"):
        names = imported_names(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        assert not [name for name in names if tests & set(name.split("."))], path


def test_folders_of_tests_mirror_the_packages():
    found = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    for folder in found:
        assert (ROOT / "uso_jax" / folder).is_dir() or (ROOT / folder).is_dir(), folder


def test_json_from_outside_has_one_way_in():
    found = set()
    for path in (path for folder in ("uso_jax", "convert", "scripts") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            reads = isinstance(node, ast.Attribute) and node.attr in ("loads", "load", "JSONDecoder")
            reads = reads and isinstance(node.value, ast.Name) and node.value.id == "json"
            if reads or (isinstance(node, ast.ImportFrom) and node.module == "json"):
                found.add(path.relative_to(ROOT).as_posix())
    assert found <= OWN_JSON, "call uso_jax.common.untrusted.json"
