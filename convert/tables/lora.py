# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Convert adapters for FLUX from common layouts into USO's, and write USO's in theirs.

The layouts store `down` and `up` of some rank for each module (uso_jax.weights.adapters.keys). They differ in whether
they adapt queries, keys and values together, as USO does, or separately. Separate ones are combined exactly: three
adapters with an identical `down` are one adapter of the same rank, which is also how this project writes them;
otherwise they become the three blocks of one adapter of three times the rank. Ranks that differ between kinds of
modules are kept; those that differ between blocks are an error, unless the caller allows padding with zeros, which
changes nothing. Modules that a file does not adapt get zeros. Modules that USO does not adapt are an error, because USO
has no parameters for them: such adapters are merged into the base.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from uso_jax.common.errors import InputError
from uso_jax.weights.adapters import keys
from uso_jax.weights.adapters.keys import Module
from uso_jax.weights.adapters.names import place
from uso_jax.weights.files.tensors import File, LazyTensor, Sources, computed

_MERGE = "merge the file into the transformer (uso-convert merge), or pass it to uso-generate --lora"


@dataclasses.dataclass(frozen=True)
class _Pair:
    """One adapted module of a file."""

    module: str
    down: LazyTensor | None
    up: LazyTensor | None
    factor: float

    @classmethod
    def of(cls, module: Module) -> "_Pair":
        down, up = module.tensors.get("down"), module.tensors.get("up")
        rank = down.shape[0] if down is not None and down.shape and down.shape[0] else None
        return cls(module.name, down, up, module.scale(rank))

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclasses.dataclass
class Adapters:
    """A file's adapters under USO's names, and their problems by kind."""

    sources: Sources
    missing: list[str]
    wrong: list[str]
    notes: list[str]


def normalise(found: Sources, files: Sequence[File], pad_ranks: bool = False) -> Adapters:
    """Convert adapters of any layout into USO's.

    Raises:
      InputError: the file adapts modules that USO does not, is not a plain LoRA, or has mixed ranks.
    """
    parsed = keys.parse(found, files)
    adapters = _by_place(parsed)
    result = Adapters({}, [], [], [])
    pairs = [pair for parts in adapters.values() for pair in parts.values()]
    for pair in pairs:
        _check(pair, result)
    if result.missing or result.wrong:
        return result
    ranks = sorted({pair.rank for pair in pairs})
    joined = {name: _join(name, parts, result) for name, parts in adapters.items()}
    if result.wrong:
        return result
    rank = max(down.shape[0] for down, _ in joined.values())
    by_kind: dict[str, set[int]] = {}
    for name, (down, _) in joined.items():
        by_kind.setdefault(_kind(name), set()).add(down.shape[0])
    alike = all(len(found) == 1 for found in by_kind.values())
    if len(ranks) > 1 and not pad_ranks and not alike:
        raise InputError(
            f"the adapters have different ranks ({', '.join(map(str, ranks[:8]))}), the model has one for all blocks of"
            f" a kind; pass --pad-ranks to pad all of them to {rank} with zeros, which costs memory and time but"
            " changes no result"
        )
    kept = len(ranks) > 1 and not pad_ranks
    for name, (down, up) in joined.items():
        own = down.shape[0] if kept else rank
        result.sources[f"{name}.down.weight"] = _padded(down, own, axis=0)
        result.sources[f"{name}.up.weight"] = _padded(up, own, axis=1)
    if rank > ranks[-1]:
        result.notes.append(f"q, k and v are adapted apart: rank {ranks[-1]} each is rank {rank} together")
    elif len(ranks) > 1 and not kept:
        result.notes.append(f"ranks {', '.join(map(str, ranks))}, all filled up to {rank}")
    if any(pair.factor != 1 for pair in pairs):
        result.notes.append("alpha / rank is multiplied into up")
    if parsed.text:
        result.notes.append(f"{len(parsed.text):,} tensors of text encoders are left out")
    return result


def _kind(name: str) -> str:
    """Return the name of an adapter without the number of its block."""
    return re.sub(r"\.\d+\.", ".", name)


def _by_place(parsed: keys.Parsed) -> dict[str, dict[int | None, _Pair]]:
    """Group modules by USO's adapter and, if a file adapts q, k and v separately, by which of them it is.

    Raises:
      InputError: USO has no parameters for a module, or for what the file does to it.
    """
    adapters: dict[str, dict[int | None, _Pair]] = {}
    stray = list(parsed.values)
    for name, module in parsed.modules.items():
        if "magnitude" in module.tensors:
            raise InputError(f"these adapters are DoRA ({name}), which scales columns and is not a LoRA; {_MERGE}")
        if (found := place(name)) is None or module.tensors.keys() - {"down", "up"}:
            stray.append(name)
            continue
        parts = adapters.setdefault(found[0], {})
        if found[1] in parts:
            raise InputError(f"{name} is adapted twice, the other time as {parts[found[1]].module}")
        parts[found[1]] = _Pair.of(module)
    if stray:
        some = sorted({re.sub(r"\d+", "N", name) for name in stray})
        raise InputError(
            f"{len(stray)} stray: the adapters also change {', '.join(some[:6])}{', ...' * (len(some) > 6)}, which USO"
            f" has no adapters for; only the attention's qkv and output projections can be imported: {_MERGE}"
        )
    if not adapters:
        raise InputError("it changes text encoders only, which adapters of this project do not")
    return adapters


def _check(pair: _Pair, result: Adapters) -> None:
    if pair.down is None or pair.up is None:
        result.missing.append(f"{pair.module}.{'down' if pair.down is None else 'up'}")
        return
    down, up = pair.down.shape, pair.up.shape
    # An empty tensor may claim any size on its other axes without holding a byte.
    if len(down) != 2 or len(up) != 2 or 0 in (*down, *up) or down[0] != up[1]:
        result.wrong.append(f"{pair.module}: down {list(down)} and up {list(up)} are not of one rank")


def _join(name: str, parts: dict[int | None, _Pair], result: Adapters) -> tuple[LazyTensor, LazyTensor]:
    """Combine the adapters of a module, or of its queries, keys and values, into one (down, up)."""
    if None in parts:
        if len(parts) > 1:
            raise InputError(f"{name} is adapted both as a whole and as q, k and v apart")
        (pair,) = parts.values()
        return pair.down, _scaled_up(pair, _rows(pair))
    width = next(iter(parts.values())).down.shape[1]
    for pair in parts.values():
        if pair.up.shape[0] != width or pair.down.shape[1] != width:
            result.wrong.append(
                f"{pair.module}: {list(pair.down.shape)} and {list(pair.up.shape)} are not of width {width}"
            )
    first = next(iter(parts.values()))
    if result.wrong:
        return first.down, first.up
    thirds = [parts.get(third) for third in range(3)]
    bits = {pair.down.read().tobytes() for pair in parts.values()}
    shared = len(bits) == 1 and len({pair.down.dtype for pair in parts.values()}) == 1
    ups = [pair and _scaled_up(pair, width) for pair in thirds]
    dtypes = {up.dtype for up in ups if up}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    if shared:

        def up() -> np.ndarray:
            blocks = [np.zeros((width, first.rank), dtype) if u is None else u.read().astype(dtype) for u in ups]
            return np.concatenate(blocks)

        return first.down, computed(first.up, (3 * width, first.rank), up, dtype)
    rank = sum(pair.rank for pair in parts.values())

    def down() -> np.ndarray:
        return np.concatenate([pair.down.read() for pair in thirds if pair])

    def blocks() -> np.ndarray:
        out, column = np.zeros((3 * width, rank), dtype), 0
        for third, (pair, up) in enumerate(zip(thirds, ups, strict=True)):
            if pair:
                out[third * width : (third + 1) * width, column : column + pair.rank] = up.read()
                column += pair.rank
        return out

    return computed(first.down, (rank, width), down), computed(first.up, (3 * width, rank), blocks, dtype)


def _rows(pair: _Pair) -> int:
    """Return the number of rows of `up` that USO adapts: of a whole `linear1` or its like, those for q, k and v.

    Raises:
      InputError: the other rows are not zero.
    """
    rows, width = pair.up.shape[0], pair.down.shape[1]
    if not re.fullmatch(r"single_.*(linear1|to_qkv_mlp_proj)", pair.module) or rows <= 3 * width:
        return rows
    if np.any(pair.up.read(3 * width, rows) != 0):
        raise InputError(f"the adapters also change {pair.module}'s mlp part, which USO has no adapters for; {_MERGE}")
    return 3 * width


def _scaled_up(pair: _Pair, rows: int) -> LazyTensor:
    up, factor = pair.up, pair.factor
    if factor == 1 and rows == up.shape[0]:
        return up
    # Multiplying by a power of two is exact unless the exponent overflows; other products are kept in float32.
    exact = factor != 0 and abs(math.frexp(factor)[0]) == 0.5 and up.dtype != np.float16
    dtype = up.dtype if exact else np.dtype(np.float32)

    read = lambda: (up.read(0, rows).astype(np.float32) * np.float32(factor)).astype(dtype)
    return computed(up, (rows, up.shape[1]), read, dtype)


def _padded(source: LazyTensor, rank: int, axis: int) -> LazyTensor:
    if source.shape[axis] == rank:
        return source
    shape = tuple(rank if i == axis else size for i, size in enumerate(source.shape))
    widths = [(0, size - old) for size, old in zip(shape, source.shape, strict=True)]
    return computed(source, shape, lambda: np.pad(source.read(), widths))
