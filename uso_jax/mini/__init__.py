# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Files of the small USO that comes with the package: a tokenizer, and weights by component (see MODEL_CARD.md)."""

import pathlib

FOLDER = pathlib.Path(__file__).parent
WEIGHTS = FOLDER / "weights"
TOKENIZER = FOLDER / "tokenizer.json"


def directory(name: str | pathlib.Path) -> pathlib.Path:
    """Give the weights directory of a name: "mini" is the one that comes with the package."""
    return WEIGHTS if str(name) == "mini" else pathlib.Path(name)
