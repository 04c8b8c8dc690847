# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Inception v3 for FID: the pooled features before the classifier.

Sources: arXiv 1512.00567; https://github.com/mseitzer/pytorch-fid, inception.py, whose parameter names are used. As in
the network behind published FIDs, average pooling ignores padding, and the last block uses max pooling instead.
Shapes: b batch, h w pixels or positions, c channels.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Conv = tuple[int, tuple[int, int], int, bool]  # channels, kernel, stride, "SAME" padding
_ONE, _THREE, _ROW, _COLUMN, _SHORT, _TALL = (1, 1), (3, 3), (1, 7), (7, 1), (1, 3), (3, 1)


def _same(channels: int, kernel: tuple[int, int] = _ONE) -> Conv:
    return channels, kernel, 1, True


def _half(channels: int) -> Conv:
    return channels, _THREE, 2, False


def _a(pool: int) -> dict[str, Conv]:
    return {
        "branch1x1": _same(64), "branch5x5_1": _same(48), "branch5x5_2": _same(64, (5, 5)), "branch3x3dbl_1": _same(64),
        "branch3x3dbl_2": _same(96, _THREE), "branch3x3dbl_3": _same(96, _THREE), "branch_pool": _same(pool),
    }  # fmt: skip


def _c(mid: int) -> dict[str, Conv]:
    return {
        "branch1x1": _same(192), "branch7x7_1": _same(mid), "branch7x7_2": _same(mid, _ROW),
        "branch7x7_3": _same(192, _COLUMN), "branch7x7dbl_1": _same(mid), "branch7x7dbl_2": _same(mid, _COLUMN),
        "branch7x7dbl_3": _same(mid, _ROW), "branch7x7dbl_4": _same(mid, _COLUMN), "branch7x7dbl_5": _same(192, _ROW),
        "branch_pool": _same(192),
    }  # fmt: skip


_E = {
    "branch1x1": _same(320), "branch3x3_1": _same(384), "branch3x3_2a": _same(384, _SHORT),
    "branch3x3_2b": _same(384, _TALL), "branch3x3dbl_1": _same(448), "branch3x3dbl_2": _same(384, _THREE),
    "branch3x3dbl_3a": _same(384, _SHORT), "branch3x3dbl_3b": _same(384, _TALL), "branch_pool": _same(192),
}  # fmt: skip
STEM: dict[str, Conv] = {
    "Conv2d_1a_3x3": _half(32), "Conv2d_2a_3x3": (32, _THREE, 1, False), "Conv2d_2b_3x3": _same(64, _THREE),
    "Conv2d_3b_1x1": _same(80), "Conv2d_4a_3x3": (192, _THREE, 1, False),
}  # fmt: skip
BLOCKS: dict[str, dict[str, Conv]] = {
    "Mixed_5b": _a(32), "Mixed_5c": _a(64), "Mixed_5d": _a(64),
    "Mixed_6a": {
        "branch3x3": _half(384), "branch3x3dbl_1": _same(64), "branch3x3dbl_2": _same(96, _THREE),
        "branch3x3dbl_3": _half(96),
    },
    "Mixed_6b": _c(128), "Mixed_6c": _c(160), "Mixed_6d": _c(160), "Mixed_6e": _c(192),
    "Mixed_7a": {
        "branch3x3_1": _same(192), "branch3x3_2": _half(320), "branch7x7x3_1": _same(192),
        "branch7x7x3_2": _same(192, _ROW), "branch7x7x3_3": _same(192, _COLUMN), "branch7x7x3_4": _half(192),
    },
    "Mixed_7b": _E, "Mixed_7c": _E,
}  # fmt: skip
# Each step of a branch is a convolution, a tuple of parallel convolutions, or a pooling.
_BRANCHES = {
    "a": (("branch1x1",), ("branch5x5_1", "branch5x5_2"), tuple(f"branch3x3dbl_{i}" for i in (1, 2, 3)),
          ("average", "branch_pool")),
    "b": (("branch3x3",), tuple(f"branch3x3dbl_{i}" for i in (1, 2, 3)), ("halve",)),
    "c": (("branch1x1",), tuple(f"branch7x7_{i}" for i in (1, 2, 3)),
          tuple(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)), ("average", "branch_pool")),
    "d": (("branch3x3_1", "branch3x3_2"), tuple(f"branch7x7x3_{i}" for i in (1, 2, 3, 4)), ("halve",)),
    "e": (("branch1x1",), ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b")),
          ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")), ("average", "branch_pool")),
}  # fmt: skip
_KINDS = dict(zip(BLOCKS, "aaabccccdee", strict=True))


@dataclass(frozen=True)
class InceptionConfig:
    """The released network, which has 2048 features, or a narrower one."""

    divisor: int = 1  # of all channel counts
    dtype: str = "float32"  # the only supported one
    remat: str = "none"

    def __post_init__(self):
        if not 1 <= self.divisor <= 16:
            raise ValueError(f"divisor must be between 1 and 16, not {self.divisor}")


class BasicConv(nnx.Module):
    """A convolution, batch normalisation with running statistics, and ReLU."""

    def __init__(self, width: int, conv: Conv, divisor: int, *, rngs: nnx.Rngs):
        channels, kernel, stride, padded = conv
        channels //= divisor
        padding = "SAME" if padded else "VALID"
        self.conv = nnx.Conv(width, channels, kernel, strides=stride, padding=padding, use_bias=False, rngs=rngs)
        self.bn = _Norm(channels)
        self.channels = channels

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        return jax.nn.relu(self.bn(self.conv(x)))


class _Norm(nnx.Module):
    def __init__(self, channels: int):
        self.scale, self.bias, self.mean, self.var = (nnx.Param(jnp.full((channels,), x)) for x in (1.0, 0.0, 0.0, 1.0))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + 1e-3)
        return x * factor[None, None, None] + (self.bias[...] - self.mean[...] * factor)[None, None, None]


class Block(nnx.Module):
    """Parallel branches, concatenated along channels."""

    def __init__(self, width: int, convs: dict[str, Conv], kind: str, last: bool, divisor: int, *, rngs: nnx.Rngs):
        self.kind, self.last, self.channels = kind, last, 0
        for branch in _BRANCHES[kind]:
            inside, ends = width, []
            for step in branch:
                names = step if isinstance(step, tuple) else (step,)
                for name in names:
                    if name in convs:
                        setattr(self, name, BasicConv(inside, convs[name], divisor, rngs=rngs))
                ends = [getattr(self, name).channels if name in convs else inside for name in names]
                inside = ends[0]
            self.channels += sum(ends)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        return jnp.concatenate([self._branch(branch, x) for branch in _BRANCHES[self.kind]], axis=-1)

    def _branch(self, branch: tuple, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        for step in branch:
            if step == "halve":
                x = nnx.max_pool(x, _THREE, (2, 2))
            elif step == "average" and self.last:
                x = nnx.max_pool(x, _THREE, (1, 1), padding="SAME")
            elif step == "average":
                x = nnx.avg_pool(x, _THREE, (1, 1), padding="SAME", count_include_pad=False)
            elif isinstance(step, tuple):
                x = jnp.concatenate([getattr(self, name)(x) for name in step], axis=-1)
            else:
                x = getattr(self, step)(x)
        return x


class Inception(nnx.Module):
    """Map images in [-1, 1] to features averaged over positions; FID uses 299 x 299 pixels."""

    def __init__(self, config: InceptionConfig = InceptionConfig(), *, rngs: nnx.Rngs):
        self.config, width = config, 3
        for name, conv in STEM.items():
            setattr(self, name, BasicConv(width, conv, config.divisor, rngs=rngs))
            width = getattr(self, name).channels
        for name, convs in BLOCKS.items():
            block = Block(width, convs, _KINDS[name], name == "Mixed_7c", config.divisor, rngs=rngs)
            setattr(self, name, block)
            width = block.channels

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b c"]:
        x = pixels
        for name in STEM:
            x = getattr(self, name)(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = nnx.max_pool(x, _THREE, (2, 2))
        for name in BLOCKS:
            x = getattr(self, name)(x)
        return x.mean(axis=(1, 2))
