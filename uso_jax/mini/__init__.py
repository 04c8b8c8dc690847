# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Weights and tokenizer of the small USO that ships with the package (see MODEL_CARD.md)."""

import pathlib

FOLDER = pathlib.Path(__file__).parent
WEIGHTS = FOLDER / "weights"
TOKENIZER = FOLDER / "tokenizer.json"


def directory(name: str | pathlib.Path) -> pathlib.Path:
    """Return the weights directory for a path, or for the name of the bundled model, "mini"."""
    return WEIGHTS if str(name) == "mini" else pathlib.Path(name)
