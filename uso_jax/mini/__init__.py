# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Files of the small USO that comes with the package: a tokenizer, and weights by size (see MODEL_CARD.md)."""

import pathlib

FOLDER = pathlib.Path(__file__).parent
WEIGHTS = FOLDER / "weights"
SIZES = {"mini": WEIGHTS, "small": FOLDER / "small"}  # 32 pixels, and 64
TOKENIZER = FOLDER / "tokenizer.json"


def directory(name: str | pathlib.Path) -> pathlib.Path:
    """Give the weights directory of a name: "mini" and "small" are those that come with the package."""
    return SIZES.get(str(name), pathlib.Path(name))
