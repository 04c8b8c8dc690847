# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From a prompt to what the transformer reads: features of every text token and one pooled vector.

Tokens are made on the host, one prompt at a time; encoding runs on the device.
Shapes: b batch, t text tokens, d width.
"""

from dataclasses import dataclass

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from uso_jax.models import words
from uso_jax.models.words import Words, WordsConfig


@dataclass(frozen=True)
class WordsTextConfig:
    """Mini's text: fixed random word vectors."""

    words: WordsConfig = WordsConfig()

    @property
    def txt_width(self) -> int:
        return self.words.width

    @property
    def vec_width(self) -> int:
        return self.words.width

    def tokenize(self, prompt: str) -> dict[str, np.ndarray]:
        """Give the prompt's token arrays, the arguments of the encoder by name."""
        return words.tokenize(self.words, prompt)


TextConfig = WordsTextConfig


class TextEncoder(nnx.Module):
    """Encode token arrays to (text features, pooled vector)."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        self.words = Words(config.words, rngs=rngs)

    def __call__(self, **tokens: Int[Array, "b t"]) -> tuple[Float[Array, "b t d"], Float[Array, "b v"]]:
        return self.words(tokens["words"])
