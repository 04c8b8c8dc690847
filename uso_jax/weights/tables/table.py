# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Conversion tables: one row per module, used in both directions.

A row names a torch module, the Flax module that holds the same numbers, and a kind that maps tensor suffixes to
parameter names and axis orders. `{i}` is a layer number: if the Flax path has it too, the layers are separate modules,
otherwise they are stacked on axis 0. `{r}` is `{i}` counted from the other end. Several Flax paths are the torch tensor
cut along its first axis; several torch modules are the Flax parameter cut into equal parts.

The model's parameter shapes determine which tensors must exist, so stray, missing and misshaped ones are found.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from uso_jax.common.errors import InputError

Axes = tuple[int | None, ...] | None
Leaf = (
    tuple  # (Flax parameter, axes of the torch tensor in Flax order), optionally HALVES; None is a new axis of size 1
)
Kind = Mapping[str, Leaf]  # by torch suffix
Shapes = Mapping[str, jax.ShapeDtypeStruct]  # "/"-joined parameter path -> shape and dtype

HALVES = "halves"  # the two halves of the first torch axis are exchanged

DENSE: Kind = {".weight": ("/kernel", (1, 0)), ".bias": ("/bias", None)}
SWAPPED: Kind = {".weight": ("/kernel", (1, 0), HALVES), ".bias": ("/bias", None, HALVES)}
CONV: Kind = {".weight": ("/kernel", (2, 3, 1, 0)), ".bias": ("/bias", None)}
CONV_1X1: Kind = {".weight": ("/kernel", (None, None, 1, 0)), ".bias": ("/bias", None)}  # stored as a linear layer
NORM: Kind = {".weight": ("/scale", None), ".bias": ("/bias", None)}
RMS: Kind = {".scale": ("/scale", None)}
EMBED: Kind = {".weight": ("/embedding", None)}
IN_PROJ: Kind = {"_weight": ("/kernel", (1, 0)), "_bias": ("/bias", None)}
PARAM: Kind = {"": ("", None)}

Row = tuple[str | tuple[str, ...], str | tuple[str, ...], Kind]


@dataclasses.dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` of a parameter in torch's axis order; parameters without axes are one row."""

    path: str
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Entry:
    """One torch tensor: its pieces one after another along axis 0; `layer` is their place in a stack."""

    pieces: tuple[Piece, ...]
    layer: int | None
    axes: Axes
    shape: tuple[int, ...]

    def place(self, piece: Piece) -> tuple:
        """Return the index of a piece in its parameter."""
        layer = () if self.layer is None else (self.layer,)
        if not self.shape:
            return (*layer, ...)
        axis = 0 if self.axes is None else self.axes.index(0)
        return (*layer, *(slice(None),) * axis, slice(piece.start, piece.stop))

    def flax(self, part: np.ndarray) -> np.ndarray:
        """Return a torch tensor, or rows of one, in the parameter's axis order."""
        if self.axes is None:
            return part
        order = [axis for axis in self.axes if axis is not None]
        return part.transpose(order)[tuple(np.newaxis if axis is None else slice(None) for axis in self.axes)]

    def torch(self, param: np.ndarray) -> np.ndarray:
        """Undo `flax`."""
        if self.axes is None:
            return param
        order = [axis for axis in self.axes if axis is not None]
        return param[tuple(0 if axis is None else slice(None) for axis in self.axes)].transpose(np.argsort(order))

    def split(self, tensor: np.ndarray) -> Iterator[tuple[Piece, np.ndarray]]:
        """Yield the pieces of a torch tensor as parts of Flax parameters, without the layer axis."""
        offset = 0
        for piece in self.pieces:
            size = piece.stop - piece.start
            yield piece, self.flax(tensor[offset : offset + size] if self.shape else tensor)
            offset += size

    def join(self, params: Mapping[str, Any]) -> np.ndarray:
        """Undo `split`, taking this entry's layer out of stacked parameters."""
        parts = []
        for piece in self.pieces:
            param = params[piece.path] if self.layer is None else params[piece.path][self.layer]
            part = self.torch(np.asarray(param))
            parts.append(part[piece.start : piece.stop] if self.shape else part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def expand(rows: Sequence[Row], shapes: Shapes) -> dict[str, Entry]:
    """Return the torch tensors that a model with these parameters needs, by torch key."""
    entries: dict[str, Entry] = {}
    unclaimed = set(shapes)
    for torch_modules, flax_modules, kind in rows:
        torch_modules = (torch_modules,) if isinstance(torch_modules, str) else torch_modules
        flax_modules = (flax_modules,) if isinstance(flax_modules, str) else flax_modules
        assert 1 in (len(torch_modules), len(flax_modules)), f"{torch_modules} and {flax_modules} cannot both be cut"
        stacked = "{i}" in torch_modules[0] and "{i}" not in flax_modules[0]
        for suffix, (leaf, axes, *halves) in kind.items():
            for numbers, paths in _matches([module + leaf for module in flax_modules], shapes):
                unclaimed -= set(paths)
                inner = [
                    _torch_shape(shapes[path].shape[1:] if stacked else shapes[path].shape, axes) for path in paths
                ]
                whole = [Piece(path, 0, shape[0] if shape else 1) for path, shape in zip(paths, inner, strict=True)]
                groups = [whole] if len(torch_modules) == 1 else [[part] for part in _cut(whole[0], len(torch_modules))]
                if halves:
                    groups = [_cut(piece, 2)[::-1] for (piece,) in groups]
                for module, pieces in zip(torch_modules, groups, strict=True):
                    shape = (sum(piece.stop - piece.start for piece in pieces), *inner[0][1:]) if inner[0] else ()
                    for layer in range(shapes[paths[0]].shape[0]) if stacked else [None]:
                        key = (module + suffix).format(**(numbers if layer is None else {"i": layer}))
                        assert key not in entries, f"two rows make {key}"
                        entries[key] = Entry(tuple(pieces), layer, axes, shape)
    assert not unclaimed, f"no row of the table fills {sorted(unclaimed)}"
    return entries


def _torch_shape(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    if axes is None:
        return tuple(shape)
    return tuple(
        size for _, size in sorted((axis, size) for axis, size in zip(axes, shape, strict=True) if axis is not None)
    )


def _cut(piece: Piece, parts: int) -> list[Piece]:
    """Cut a parameter's rows into equal parts."""
    size = (piece.stop - piece.start) // parts
    assert size * parts == piece.stop - piece.start, f"{piece} does not divide into {parts}"
    return [Piece(piece.path, i * size, (i + 1) * size) for i in range(parts)]


def _matches(patterns: list[str], shapes: Shapes) -> Iterator[tuple[dict[str, int], tuple[str, ...]]]:
    """Yield the layer numbers for which the first pattern names a parameter, and all patterns filled in with them."""
    stem, layered, _ = patterns[0].partition("{i}")
    # Counted over everything below the stem: the last level may lack this particular module.
    below = (path[len(stem) :].split("/")[0] for path in shapes if layered and path.startswith(stem))
    last = max((int(number) for number in below if number.isdigit()), default=0)
    regex = re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(patterns[0]))
    for path in shapes:
        if match := re.fullmatch(regex, path):
            numbers = {name: int(value) for name, value in match.groupdict().items()}
            if layered:
                numbers["r"] = last - numbers["i"]
            yield numbers, tuple(pattern.format(**numbers) for pattern in patterns)


def to_flax(rows: Sequence[Row], shapes: Shapes, tensors: Iterable[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Fill a model's parameters from torch tensors.

    Raises:
      InputError: tensors are missing, stray, given twice or of wrong shape; the message lists all problems.
    """
    entries = expand(rows, shapes)
    params: dict[str, np.ndarray] = {}
    seen, stray, duplicate, wrong = set(), [], [], []
    for key, tensor in tensors:
        entry = entries.get(key)
        if entry is None:
            stray.append(key)
        elif key in seen:
            duplicate.append(key)
        elif tuple(tensor.shape) != entry.shape:
            wrong.append(f"{key} is {list(tensor.shape)}, not {list(entry.shape)}")
        else:
            for piece, part in entry.split(tensor):
                if piece.path not in params:
                    params[piece.path] = np.empty(shapes[piece.path].shape, tensor.dtype)
                params[piece.path][entry.place(piece)] = part
        seen.add(key)
    missing = sorted(set(entries) - seen)
    problems = [
        f"{len(found)} {name} ({', '.join(found[:5])}{', ...' if len(found) > 5 else ''})"
        for name, found in (
            ("missing", missing),
            ("stray", stray),
            ("given twice", duplicate),
            ("of wrong shape", wrong),
        )
        if found
    ]
    if problems:
        raise InputError(f"the tensors do not fit the model: {'; '.join(problems)}")
    return params


def to_torch(rows: Sequence[Row], shapes: Shapes, params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the torch tensors of a model's parameters in the table's order."""
    for key, entry in expand(rows, shapes).items():
        yield key, np.ascontiguousarray(entry.join(params))
