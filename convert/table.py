# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Conversion tables: one row a module, read in both directions.

A row names a torch module, the Flax module that holds the same numbers, and a kind that maps tensor suffixes to
parameter names and axis orders. `{i}` is a layer number: when the Flax path has it too the layers are separate modules,
when it has not they are stacked on axis 0. Several Flax paths in a row are the torch tensor cut along its first axis.

The model's own parameter shapes decide what must exist, so stray, missing and wrong-shape tensors cannot pass.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np

from uso_jax.errors import InputError

Axes = tuple[int, ...] | None
Kind = Mapping[str, tuple[str, Axes]]  # torch suffix -> (Flax parameter, axes of the torch tensor in Flax order)
Shapes = Mapping[str, jax.ShapeDtypeStruct]  # "/"-joined parameter path -> shape and dtype

DENSE: Kind = {".weight": ("/kernel", (1, 0)), ".bias": ("/bias", None)}
CONV: Kind = {".weight": ("/kernel", (2, 3, 1, 0)), ".bias": ("/bias", None)}
NORM: Kind = {".weight": ("/scale", None), ".bias": ("/bias", None)}
RMS: Kind = {".scale": ("/scale", None)}
EMBED: Kind = {".weight": ("/embedding", None)}
IN_PROJ: Kind = {"_weight": ("/kernel", (1, 0)), "_bias": ("/bias", None)}
PARAM: Kind = {"": ("", None)}

Row = tuple[str, str | tuple[str, ...], Kind]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One torch tensor and where its numbers live: `paths` cut it along axis 0, `layer` is its place in a stack."""

    paths: tuple[str, ...]
    sizes: tuple[int, ...]
    layer: int | None
    axes: Axes
    shape: tuple[int, ...]

    def split(self, tensor: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Cut a torch tensor into Flax parameters (without the layer axis)."""
        offset = 0
        for path, size in zip(self.paths, self.sizes, strict=True):
            part = tensor if len(self.paths) == 1 else tensor[offset : offset + size]
            yield path, part if self.axes is None else part.transpose(self.axes)
            offset += size

    def join(self, params: Mapping[str, np.ndarray]) -> np.ndarray:
        """Undo `split`, taking this entry's layer out of stacked parameters."""
        parts = []
        for path in self.paths:
            part = np.asarray(params[path] if self.layer is None else params[path][self.layer])
            parts.append(part if self.axes is None else part.transpose(np.argsort(self.axes)))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def expand(rows: Sequence[Row], shapes: Shapes) -> dict[str, Entry]:
    """Give the torch tensors that a model with these parameters needs, by torch key."""
    entries: dict[str, Entry] = {}
    unclaimed = set(shapes)
    for torch_module, flax_modules, kind in rows:
        flax_modules = (flax_modules,) if isinstance(flax_modules, str) else flax_modules
        for suffix, (leaf, axes) in kind.items():
            for numbers, paths in _matches([module + leaf for module in flax_modules], shapes):
                unclaimed -= set(paths)
                structs = [shapes[path] for path in paths]
                stacked = "{i}" in torch_module and "{i}" not in flax_modules[0]
                layers = range(structs[0].shape[0]) if stacked else [None]
                inner = [s.shape[1:] if stacked else s.shape for s in structs]
                torch_shapes = [s if axes is None else tuple(s[a] for a in np.argsort(axes)) for s in inner]
                sizes = tuple(s[0] if s else 1 for s in torch_shapes)
                shape = (sum(sizes), *torch_shapes[0][1:]) if torch_shapes[0] else ()
                for layer in layers:
                    key = (torch_module + suffix).format(**(numbers if layer is None else {"i": layer}))
                    assert key not in entries, f"two rows make {key}"
                    entries[key] = Entry(paths, sizes, layer, axes, shape)
    assert not unclaimed, f"no row of the table fills {sorted(unclaimed)}"
    return entries


def _matches(patterns: list[str], shapes: Shapes) -> Iterator[tuple[dict[str, int], tuple[str, ...]]]:
    """Give every set of layer numbers for which the first pattern names a parameter, with all patterns filled in."""
    regex = re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(patterns[0]))
    for path in shapes:
        if match := re.fullmatch(regex, path):
            numbers = {name: int(value) for name, value in match.groupdict().items()}
            yield numbers, tuple(pattern.format(**numbers) for pattern in patterns)


def to_flax(rows: Sequence[Row], shapes: Shapes, tensors: Iterable[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Fill a model's parameters from torch tensors; every problem is collected and raised together."""
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
            for path, part in entry.split(tensor):
                if path not in params:
                    params[path] = np.empty(shapes[path].shape, tensor.dtype)
                params[path][... if entry.layer is None else entry.layer] = part
        seen.add(key)
    missing = sorted(set(entries) - seen)
    problems = [
        f"{len(found)} {name} ({', '.join(found[:5])}{', ...' if len(found) > 5 else ''})"
        for name, found in (("missing", missing), ("stray", stray), ("given twice", duplicate), ("of wrong shape", wrong))
        if found
    ]
    if problems:
        raise InputError(f"the tensors do not fit the model: {'; '.join(problems)}")
    return params


def to_torch(
    rows: Sequence[Row], shapes: Shapes, params: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """Give the torch tensors of a model's parameters, one at a time, in the table's order."""
    for key, entry in expand(rows, shapes).items():
        yield key, np.ascontiguousarray(entry.join(params))
