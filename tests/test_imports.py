# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Imports point one way."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
RULES = {  # files: what no import in them may match
    "uso_jax/**/*.py": r"(torch|torchvision|diffusers|tensorflow|configs|scripts|convert|tests)(\..*)?",
    "uso_jax/models/*.py": r"uso_jax(?!\.(models|attention|traced_mesh|errors)(\..*)?$).*",
    "uso_jax/flow.py": r"uso_jax.*",
    "convert/*.py": r"(diffusers|tensorflow|configs|scripts|tests)(\..*)?",
}


def imported(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide where they point"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("files", RULES)
def test_direction(files):
    paths = list(ROOT.glob(files))
    assert paths
    found = {(path.name, name) for path in paths for name in imported(ast.walk(ast.parse(path.read_text())))}
    assert not {pair for pair in found if re.fullmatch(RULES[files], pair[1])}


def test_convert_imports_torch_only_when_it_must():
    for path in (ROOT / "convert").glob("*.py"):
        assert not [name for name in imported(ast.parse(path.read_text()).body) if name.split(".")[0] == "torch"]
