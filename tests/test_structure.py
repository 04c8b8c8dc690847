# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tests mirror the packages and do not import one another; shared code lies in tests/helpers."""

import ast
import pathlib

from import_graph import imported_names

ROOT = pathlib.Path(__file__).parents[1]
TESTS = ROOT / "tests"


def test_no_test_is_imported():
    tests = {path.stem for path in TESTS.rglob("test_*.py")}
    for path in TESTS.rglob("*.py"):
        names = imported_names(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        assert not [name for name in names if tests & set(name.split("."))], path


def test_folders_of_tests_mirror_the_packages():
    found = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    for folder in found:
        assert (ROOT / "uso_jax" / folder).is_dir() or (ROOT / folder).is_dir(), folder
