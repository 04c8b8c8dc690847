# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A TPU kernel from projected tokens to normalised, rotated queries and keys, and values, heads first.

XLA writes and reads q, k and v about six times for the same: to split heads, for the norm, for the rotation of adjacent
channels, for the order of the axes and for padding. The kernel reads them once and writes them once.

Tokens come in streams, such as text and image, each with its norm. Each stream is padded to whole tiles of tokens.
Adjacent channels are rotated as x * cos + swap(x) * sin with the tables of `embeddings.rotation_tables`.

Shapes: b batch, l tokens of a stream, t padded tokens of all streams, n heads, k head width, d3 = 3 n k.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

TILE = 64  # tokens of a grid step: with all heads, FLUX.1's is 1.2 MB
_EPSILON = 1e-6  # of the norm


class Stream(NamedTuple):
    """Projected tokens of one kind.

    Attributes:
      qkv: queries of all heads, then keys, then values, [b, l, d3].
      scales: float32 factors of normalised queries and keys, [2, k].
    """

    qkv: Array
    scales: Array


class Tables(NamedTuple):
    """Cosine and signed sine of every channel of every padded token, float32 [b or 1, t, k]."""

    cos: Array
    sin: Array


@dataclass(frozen=True)
class Layout:
    """Where the tokens of streams lie, in tiles."""

    lengths: tuple[int, ...]
    heads: int

    @property
    def tiles(self) -> tuple[int, ...]:
        """The number of tiles of each stream."""
        return tuple(-(-length // TILE) for length in self.lengths)

    @property
    def starts(self) -> tuple[int, ...]:
        """The first tile of each stream."""
        return tuple(sum(self.tiles[:number]) for number in range(len(self.tiles)))

    @property
    def padded(self) -> int:
        """The number of tokens with padding."""
        return TILE * sum(self.tiles)

    def pad(self, x: Array, filling: float | bool = 0) -> Array:
        """Pad the tokens of all streams, on axis 1, to whole tiles."""
        if self.padded == sum(self.lengths):
            return x
        parts = []
        for part, length in zip(self._split(x, self.lengths), self.lengths, strict=True):
            pad = [(0, 0), (0, -length % TILE)] + [(0, 0)] * (x.ndim - 2)
            parts.append(jnp.pad(part, pad, constant_values=filling))
        return jnp.concatenate(parts, axis=1)

    def streams(self, x: Array) -> list[Array]:
        """Return the tokens of every stream, on axis 1, without padding."""
        padded = self._split(x, [TILE * count for count in self.tiles])
        return [part[:, :length] for part, length in zip(padded, self.lengths, strict=True)]

    @staticmethod
    def _split(x: Array, lengths: Sequence[int]) -> list[Array]:
        return jnp.split(x, np.cumsum(lengths)[:-1], axis=1) if len(lengths) > 1 else [x]


def heads_first(
    streams: Sequence[Stream], tables: Tables, layout: Layout, interpret: bool = False
) -> tuple[Float[Array, "b n t k"], Float[Array, "b n t k"], Float[Array, "b n t k"]]:
    """Return normalised, scaled and rotated queries and keys, and values, with zeros for padding.

    Norms, factors and rotations are float32, rounded once at the end. Tables are constants: they get no gradient.
    """
    return _heads_first(tuple(streams), tables, layout, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _heads_first(streams, tables, layout, interpret):
    width = tables.cos.shape[-1]
    first = streams[0].qkv
    b, heads = first.shape[0], layout.heads
    shape = jax.ShapeDtypeStruct((b, heads, layout.padded, width), first.dtype)
    spec = pl.BlockSpec((None, heads, TILE, width), lambda b, i: (b, 0, i, 0))
    return pl.pallas_call(
        functools.partial(_forward_kernel, layout=layout),
        grid=(b, sum(layout.tiles)),
        in_specs=_in_specs(streams, tables, layout),
        out_specs=[spec] * 3,
        out_shape=[shape] * 3,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        name="heads_first",
        interpret=interpret,
    )(*_operands(streams, tables))


def _forward(streams, tables, layout, interpret):
    return tuple(_heads_first(streams, tables, layout, interpret)), (streams, tables)


def _backward(layout, interpret, saved, gradients):
    streams, tables = saved
    width = tables.cos.shape[-1]
    b = streams[0].qkv.shape[0]
    spec = pl.BlockSpec((None, layout.heads, TILE, width), lambda b, i: (b, 0, i, 0))
    accumulator = pl.BlockSpec((2, width), lambda b, i: (0, 0))
    found = pl.pallas_call(
        functools.partial(_backward_kernel, layout=layout),
        grid=(b, sum(layout.tiles)),
        in_specs=[*_in_specs(streams, tables, layout), *[spec] * 3],
        out_specs=[x for stream in _stream_specs(streams, layout) for x in (stream, accumulator)],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for stream in streams for x in stream],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary")),
        name="heads_first_backward",
        interpret=interpret,
    )(*_operands(streams, tables), *gradients)
    return tuple(Stream(*found[2 * number : 2 * number + 2]) for number in range(len(streams))), None


_heads_first.defvjp(_forward, _backward)


# ---------------------------------------------------------------------------------------------------- blocks


def _operands(streams: Sequence[Stream], tables: Tables) -> list[Array]:
    return [x for stream in streams for x in stream] + list(tables)


def _in_specs(streams: Sequence[Stream], tables: Tables, layout: Layout) -> list[pl.BlockSpec]:
    rows, _, width = tables.cos.shape
    table = pl.BlockSpec((None, TILE, width), lambda b, i: (b if rows > 1 else 0, i, 0))
    scales = pl.BlockSpec((2, width), lambda b, i: (0, 0))
    return [x for stream in _stream_specs(streams, layout) for x in (stream, scales)] + [table] * 2


def _stream_specs(streams: Sequence[Stream], layout: Layout) -> list[pl.BlockSpec]:
    """Return the tiles of each stream. Outside of its steps a stream's first or last one stays, and moves no data."""

    def spec(stream: Stream, start: int, count: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, TILE, stream.qkv.shape[-1]), lambda b, i: (b, jnp.clip(i - start, 0, count - 1), 0))

    return [spec(*one) for one in zip(streams, layout.starts, layout.tiles, strict=True)]


def _each_stream(layout: Layout, body) -> None:
    """Call `body(number, rows)` in the steps of each stream; `rows` marks its tokens, None: no row is padding."""
    step = pl.program_id(1)
    for number, (start, count, length) in enumerate(zip(layout.starts, layout.tiles, layout.lengths, strict=True)):

        @pl.when((step >= start) & (step < start + count))
        def _(number=number, start=start, length=length):
            rows = None
            if length % TILE:
                rows = jax.lax.broadcasted_iota(jnp.int32, (TILE, 1), 0) < length - (step - start) * TILE
            body(number, rows)


def _forward_kernel(*refs, layout: Layout):
    cos_ref, sin_ref, *outs = refs[2 * len(layout.lengths) :]
    cos, sin = cos_ref[...], sin_ref[...]
    width = cos.shape[-1]

    def body(number, rows):
        qkv_ref, scales_ref = refs[2 * number : 2 * number + 2]
        for part, out_ref in enumerate(outs):
            for head in range(layout.heads):
                x = qkv_ref[:, pl.ds((part * layout.heads + head) * width, width)]
                if rows is not None:
                    x = jnp.where(rows, x, jnp.zeros_like(x))
                if part < 2:
                    x, root = _normalise(x.astype(jnp.float32))
                    x = _rotate(x * (root * scales_ref[part : part + 1]), cos, sin)
                out_ref[head] = x.astype(out_ref.dtype)

    _each_stream(layout, body)


def _backward_kernel(*refs, layout: Layout):
    count = len(layout.lengths)
    cos_ref, sin_ref, *gradients = refs[2 * count : 2 * count + 5]
    outs = refs[2 * count + 5 :]
    cos, sin = cos_ref[...], sin_ref[...]
    width = cos.shape[-1]

    @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
    def _():
        for number in range(count):
            outs[2 * number + 1][...] = jnp.zeros_like(outs[2 * number + 1])

    def body(number, rows):
        qkv_ref, scales_ref = refs[2 * number : 2 * number + 2]
        out_ref, sums_ref = outs[2 * number : 2 * number + 2]
        for part, gradient_ref in enumerate(gradients):
            total = jnp.zeros((1, width), jnp.float32)
            for head in range(layout.heads):
                channels = pl.ds((part * layout.heads + head) * width, width)
                g = gradient_ref[head]
                if part < 2:
                    x = qkv_ref[:, channels]
                    if rows is not None:
                        x = jnp.where(rows, x, jnp.zeros_like(x))
                    x, root = _normalise(x.astype(jnp.float32))
                    g = _rotate(g.astype(jnp.float32), cos, -sin)  # the inverse rotation
                    total += (g * (x * root)).sum(axis=0, keepdims=True)
                    g = g * scales_ref[part : part + 1]
                    g = root * (g - x * (root * root * (g * x).mean(axis=-1, keepdims=True)))
                out_ref[:, channels] = g.astype(out_ref.dtype)
            if part < 2:
                sums_ref[part : part + 1] += total

    _each_stream(layout, body)


def _normalise(x: Array) -> tuple[Array, Array]:
    """Return the tokens of a head, and what they are multiplied by to have a mean square of 1."""
    return x, jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + _EPSILON)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    even = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) % 2 == 0
    swapped = jnp.where(even, pltpu.roll(x, x.shape[1] - 1, 1), pltpu.roll(x, 1, 1))
    return x * cos + swapped * sin
