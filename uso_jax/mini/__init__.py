# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Weights and tokenizer of the small USO models that ship with the package (see MODEL_CARD.md)."""

import pathlib

FOLDER = pathlib.Path(__file__).parent
WEIGHTS = FOLDER / "weights"
SIZES = {"mini": WEIGHTS, "small": FOLDER / "small"}  # 32 and 64 pixels
TOKENIZER = FOLDER / "tokenizer.json"


def directory(name: str | pathlib.Path) -> pathlib.Path:
    """Return the weights directory for a path, or for the name of a bundled model ("mini" or "small")."""
    return SIZES.get(str(name), pathlib.Path(name))
