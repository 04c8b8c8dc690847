# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Write a checkpoint of random bfloat16 numbers in a released layout, tensor by tensor.

    python tests/tools/make_checkpoint.py flux1-dev.safetensors /tmp/flux.safetensors
    python tests/tools/make_checkpoint.py flux1-dev.safetensors /tmp/small.safetensors --blocks 2

The second keeps the widths and only the first blocks of each kind.
"""

import argparse
import json
import math
import pathlib
import re
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from uso_jax.weights.files.safetensors_file import write_safetensors

MANIFESTS = pathlib.Path(__file__).parents[1] / "golden" / "checkpoint_manifests.json"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def layout(name: str, blocks: int | None = None, width: int = 1) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Return dtype and shape of every tensor; all sizes of at least `width` are divided by it."""
    manifest = json.loads(MANIFESTS.read_text())[name]
    number = lambda key: int(match[1]) if (match := re.match(r"\w+_blocks\.(\d+)\.", key)) else -1
    shrink = lambda size: size // width if size % width == 0 else size
    return {
        key: (BFLOAT16, tuple(map(shrink, shape)))
        for key, (shape, _) in sorted(manifest.items())
        if blocks is None or number(key) < blocks
    }


def numbers(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw finite numbers below 2 of all magnitudes: without the exponent's highest bit there is no other kind."""
    bits = rng.integers(0, 2**16, math.prod(shape), np.uint16) & 0xBFFF
    return bits.view(BFLOAT16).reshape(shape)


def make(path: pathlib.Path, layout: dict[str, tuple[np.dtype, tuple[int, ...]]], seed: int = 0) -> None:
    """Write the file."""
    rng = np.random.Generator(np.random.SFC64(seed))

    def tensors() -> Iterator[np.ndarray]:
        for _, shape in layout.values():
            yield numbers(shape, rng)

    write_safetensors(path, layout, tensors(), {"format": "pt"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("path", type=pathlib.Path)
    parser.add_argument("--blocks", type=int)
    args = parser.parse_args()
    make(args.path, layout(args.name, args.blocks))
