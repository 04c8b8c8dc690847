# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Imports point down the stack of packages, and never in a circle."""

import ast
import pathlib
import re

import import_graph
import pytest

ROOT = pathlib.Path(__file__).parents[1]
LAYERS = (  # lowest first; a room may import those of lower layers only
    {"uso_jax.common", "uso_jax.flow", "uso_jax.mini"},
    {"uso_jax.params", "uso_jax.images", "uso_jax.hardware", "uso_jax.web"},
    {"uso_jax.data", "uso_jax.parallel", "uso_jax.vlm"},
    {"uso_jax.models", "uso_jax.preferences"},
    {"uso_jax.weights"},
    {"uso_jax.inference", "convert"},
    {"uso_jax.service"},
    {"uso_jax.app", "uso_jax.evaluation"},
    {"uso_jax.training"},
    {"uso_jax.curation", "uso_jax.planning"},
    {"uso_jax.commands"},
    {"scripts", "configs"},
)
MAX_FLAT = 4  # modules beside uso_jax/__init__.py
# Files of models/ that put networks together; every other one is a network and imports other networks only.
ASSEMBLY = ("uso", "uso_config", "text", "text_qwen3", "components", "families", "tiled_decoding")
RULES = {  # files: what no import in them may match
    "uso_jax/**/*.py": r"(torch|torchvision|diffusers|tensorflow|configs|scripts|convert|tests)(\..*)?",
    f"uso_jax/models/**/!({'|'.join(ASSEMBLY)}).py": (
        r"uso_jax(?!\.(models|parallel\.constraints|common\.errors)(\..*)?$).*"
    ),
    "uso_jax/flow.py": r"uso_jax.*",
    "convert/**/*.py": r"(diffusers|tensorflow|configs|scripts|tests)(\..*)?",
}


def files_of(pattern):
    left_out = re.search(r"!\((.*)\)", pattern)
    found = ROOT.glob(pattern.replace(left_out[0], "*") if left_out else pattern)
    return [path for path in found if not left_out or path.stem not in left_out[1].split("|")]


def test_every_room_has_a_layer():
    assert set(import_graph.import_graph(ROOT)) == set().union(*LAYERS)


def test_imports_point_down_the_stack():
    layer = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
    graph = import_graph.import_graph(ROOT)
    assert not [(a, b) for a, targets in graph.items() for b in targets if layer[b] >= layer[a]]


def test_few_floors_and_no_cycles():
    floors, cycles = import_graph.floors(import_graph.import_graph(ROOT))
    assert max(floors.values()) <= 12 and not cycles


def test_few_modules_lie_flat():
    flat = [path for path in ROOT.glob("uso_jax/*.py") if path.name != "__init__.py"]
    assert len(flat) <= MAX_FLAT


def test_an_upward_import_is_found(tmp_path):
    for name, text in {"a/x.py": "from uso_jax.b import y", "b/y.py": "def f():\n    import uso_jax.a.x"}.items():
        (tmp_path / "uso_jax" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "uso_jax" / name).write_text(text)
    graph = import_graph.import_graph(tmp_path)
    assert graph == {"uso_jax.a": {"uso_jax.b"}, "uso_jax.b": {"uso_jax.a"}}
    assert import_graph.floors(graph)[1] == [{"uso_jax.a", "uso_jax.b"}]


@pytest.mark.parametrize("files", RULES)
def test_direction(files):
    paths = files_of(files)
    assert paths
    package = lambda path: import_graph.package_of(path, ROOT)
    read = lambda path: import_graph.imported_names(ast.walk(ast.parse(path.read_text())), package(path))
    assert not [(path.name, name) for path in paths for name in read(path) if re.fullmatch(RULES[files], name)]


def test_convert_imports_torch_only_when_it_must():
    for path in (ROOT / "convert").rglob("*.py"):
        names = import_graph.imported_names(ast.parse(path.read_text()).body, import_graph.package_of(path, ROOT))
        assert not [name for name in names if name.split(".")[0] == "torch"]
