# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The import graph of the project: `python tests/helpers/import_graph.py [ROOT]` prints rooms, floors and arrows.

A room is a package directly inside uso_jax or a module that lies flat there, and each of convert, configs and scripts.
An arrow is one pair of rooms of which the first imports the second. The floor of a room is one more than the highest
floor that it imports; rooms of a cycle share one floor.
"""

import ast
import importlib.util
import pathlib
import sys
from collections.abc import Iterator

from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

TOP = ("convert", "configs", "scripts")


def imported_names(nodes, package: str = "") -> Iterator[str]:
    """Yield the dotted name of everything that the nodes import.

    Args:
      nodes: nodes of a syntax tree.
      package: dotted name of the package that relative imports start from; without it they are refused.
    """
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert package or not node.level, "relative imports hide where they point"
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def package_of(path: pathlib.Path, root: pathlib.Path) -> str:
    """Return the package that a file's relative imports start from, "" where they are refused.

    Only convert may have them: it is installed under another name.
    """
    parts = path.relative_to(root).parts[:-1]
    return ".".join(parts) if parts[0] == "convert" else ""


def room_of(name: str, rooms: set[str]) -> str | None:
    """Return the room that a dotted name lies in, or None for a foreign package."""
    parts = name.split(".")
    for depth in (2, 1):
        if (room := ".".join(parts[:depth])) in rooms:
            return room
    return None


def import_graph(root: pathlib.Path) -> dict[str, set[str]]:
    """Return the rooms of a checkout and the rooms that each imports."""
    files = {path: f"uso_jax.{path.relative_to(root / 'uso_jax').parts[0]}" for path in root.glob("uso_jax/**/*.py")}
    files = {path: room.removesuffix(".py") for path, room in files.items() if room != "uso_jax.__init__.py"}
    files |= {path: name for name in TOP for path in root.glob(f"{name}/**/*.py")}
    graph: dict[str, set[str]] = {room: set() for room in files.values()}
    for path, room in files.items():
        for name in imported_names(ast.walk(ast.parse(path.read_text(encoding="utf-8"))), package_of(path, root)):
            target = room_of(name, set(graph))
            if target is not None and target != room:
                graph[room].add(target)
    return graph


def floors(graph: dict[str, set[str]]) -> tuple[dict[str, int], list[set[str]]]:
    """Return the floor of every room, and the cycles: sets of rooms that import each other."""
    names = sorted(graph)
    adjacency = csr_array([[int(b in graph[a]) for b in names] for a in names])
    count, labels = connected_components(adjacency, connection="strong")
    groups = [{name for name, label in zip(names, labels, strict=True) if label == number} for number in range(count)]
    of = {name: group for group in groups for name in group}
    known: dict[str, int] = {}

    def floor(name: str) -> int:
        if name not in known:
            below = [target for member in of[name] for target in graph[member] if target not in of[name]]
            known.update(dict.fromkeys(of[name], 1 + max(map(floor, below), default=0)))
        return known[name]

    return {name: floor(name) for name in names}, [group for group in groups if len(group) > 1]


def main() -> None:
    """Print the graph of a checkout, highest floor first."""
    graph = import_graph(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "."))
    floor, cycles = floors(graph)
    for number in range(max(floor.values()), 0, -1):
        print(f"{number:3d}  {', '.join(name for name in sorted(graph) if floor[name] == number)}")
    arrows = sum(map(len, graph.values()))
    print(f"{len(graph)} rooms, {max(floor.values())} floors, {arrows} arrows, {len(cycles)} cycles")
    for cycle in cycles:
        print(f"cycle: {', '.join(sorted(cycle))}")


if __name__ == "__main__":
    main()
