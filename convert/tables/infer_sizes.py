# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Read a model's sizes from the shapes of a checkpoint's tensors.

A reader raises KeyError for a missing tensor and ValueError for an impossible shape, and returns None for a size that
shapes do not determine.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from uso_jax.models.layers.lora import ADAPTERS

Shapes = Mapping[str, tuple[int, ...]]
Size = Callable[[Shapes], Any]

MAX_LAYERS = 512  # of any network known; a header may claim millions


def dim(key: str, axis: int) -> Size:
    """Read a size from one axis of a tensor."""

    def read(shapes: Shapes) -> int:
        # An empty tensor may claim any size on its other axes without holding a byte.
        if len(shape := shapes[key]) <= axis or 0 in shape:
            raise ValueError(f"tensor {key} has shape {list(shape)}")
        return shape[axis]

    return read


def always(value: Any) -> Size:
    """Return a constant, the same for every file of the family."""
    return lambda shapes: value


def count(pattern: str) -> Size:
    """Count the distinct numbers that `(\\d+)` matches in keys."""

    def read(shapes: Shapes) -> int:
        found = len({match[1] for key in shapes if (match := re.match(pattern, key))})
        if found > MAX_LAYERS:
            raise ValueError(f"the tensors name {found:,} layers")
        return found

    return read


def has(key: str) -> Size:
    """Read whether a tensor is present."""
    return lambda shapes: key in shapes


def at_most(size: Size, limit: int) -> Size:
    """Read a size of which the model uses a part."""
    return lambda shapes: min(size(shapes), limit)


def ratio(size: Size, base: Size, whole: bool = False) -> Size:
    """Divide two sizes."""
    return lambda shapes: size(shapes) // base(shapes) if whole else size(shapes) / base(shapes)


def known(size: Size, values: Mapping[Any, Any]) -> Size:
    """Look up a value that a size implies in released models; None for other sizes."""
    return lambda shapes: values.get(size(shapes))


def ch_mult(levels: str, conv: str) -> Size:
    """Read the widths of an autoencoder's levels, as multiples of the first convolution's."""

    def read(shapes: Shapes) -> tuple[int, ...]:
        number, base = count(levels)(shapes), dim("encoder.conv_in.weight", 0)(shapes)
        if number > 16:
            raise ValueError(f"{number} levels halve the image more often than it has pixels")
        return tuple(dim(conv.format(i), 0)(shapes) // base for i in range(number))

    return read


def grid_size(patch: str, positions: str, axis: int) -> Size:
    """Read the side of images, in pixels, from a position embedding with a class token."""
    return lambda shapes: dim(patch, 2)(shapes) * math.isqrt(max(dim(positions, axis)(shapes) - 1, 0))


def image_size(patch: str, positions: str) -> Size:
    """Read the side of SigLIP's images, in pixels."""

    def read(shapes: Shapes) -> int:
        side, number = dim(patch, 2)(shapes), dim(positions, 0)(shapes)
        # 384 is no multiple of 14: that model drops a margin, which no shape shows.
        return 384 if (side, number) == (14, 729) else side * math.isqrt(number)

    return read


# ---------------------------------------------------------------------------------------------------- adapters

_RELEASED = {  # sizes of the public transformers by section and width
    "flux": {3072: {"mlp_ratio": 4.0, "depth": 19, "depth_single_blocks": 38}},
    "flux2": {
        3072: {"mlp_ratio": 3.0, "depth": 5, "depth_single_blocks": 20},
        4096: {"mlp_ratio": 3.0, "depth": 8, "depth_single_blocks": 24},
        6144: {"mlp_ratio": 3.0, "depth": 8, "depth_single_blocks": 48},
    },
}
_BLOCKS = {"depth": "double_blocks", "depth_single_blocks": "single_blocks"}


def lora_sizes(name: str, section: str = "flux") -> Size:
    """Read a size of a transformer from its adapters under USO's names, any of which may be absent."""

    def first(shapes: Shapes, pattern: str) -> tuple[int, ...] | None:
        key = next((key for key in shapes if re.fullmatch(pattern, key)), None)
        if key is not None:
            dim(key, 1)(shapes)
            return shapes[key]
        return None

    def width(shapes: Shapes) -> int | None:
        reads_stream = first(shapes, r".*\.(qkv_lora[12]?|proj_lora[12])\.down\.weight")
        writes_stream = first(shapes, r".*\.proj_lora[12]?\.up\.weight")
        return reads_stream[1] if reads_stream else writes_stream[0] if writes_stream else None

    def rank(shapes: Shapes, adapter: str = ".*") -> int | None:
        if (down := first(shapes, rf"{adapter}\.down\.weight")) is None:
            return None
        if down[0] > (width(shapes) or down[0]):
            raise ValueError(f"rank {down[0]:,} is more than the width, {width(shapes):,}")
        return down[0]

    def read(shapes: Shapes) -> Any:
        if name in ("rank", "rules") and (common := rank(shapes)) is None:
            raise ValueError("no adapter has a down tensor")
        if name == "rank":
            return common
        if name == "rules":
            pattern = lambda path: path.replace("/", r"\.\d+\.", 1).replace("/", r"\.")
            ranks = {path: rank(shapes, pattern(path)) for path in ADAPTERS}
            return tuple((path, own, 1.0) for path, own in ranks.items() if own not in (None, common))
        hidden = width(shapes)
        if name == "hidden_size":
            return hidden
        if (
            name == "mlp_ratio"
            and hidden
            and (down := first(shapes, r"single_blocks\.\d+\.processor\.proj_lora\.down\.weight"))
        ):
            return (down[1] - hidden) / hidden
        if hidden in _RELEASED.get(section, ()):
            return _RELEASED[section][hidden][name]
        if name == "mlp_ratio":
            return None
        numbers = {int(match[1]) for key in shapes if (match := re.match(rf"{_BLOCKS[name]}\.(\d{{1,9}})\.", key))}
        # If only some blocks have adapters, the number of blocks is unknown.
        return len(numbers) if 0 < len(numbers) <= MAX_LAYERS and numbers == set(range(len(numbers))) else None

    return read
