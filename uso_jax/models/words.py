# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The text encoder of mini: fixed random vectors for words and places, nothing to train or download.

Shapes: b batch, t words, d width.
"""

import re
import zlib
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int


@dataclass(frozen=True)
class WordsConfig:
    """Words kept of a prompt, their vectors' width, and the number of slots that words are hashed into."""

    length: int = 12
    width: int = 64
    num_slots: int = 4096


def tokenize(config: WordsConfig, prompt: str) -> Int[np.ndarray, " t"]:
    """Hash the prompt's first words to slots; 0 fills the rest."""
    words = re.findall(r"\w+", prompt.lower())[: config.length]
    slots = np.zeros(config.length, np.int32)
    slots[: len(words)] = [zlib.crc32(word.encode()) % (config.num_slots - 1) + 1 for word in words]
    return slots


class Words(nnx.Module):
    """Look words up in a random table."""

    def __init__(self, config: WordsConfig, *, rngs: nnx.Rngs):
        self.table = nnx.Param(jax.random.normal(rngs.params(), (config.num_slots, config.width)))
        self.places = nnx.Param(0.5 * jax.random.normal(rngs.params(), (config.length, config.width)))

    def __call__(self, words: Int[Array, "b t"]) -> tuple[Float[Array, "b t d"], Float[Array, "b d"]]:
        """Give a vector for each word, and their mean; an empty slot is zero."""
        present = (words > 0)[..., None]
        txt = jnp.where(present, self.table[...][words] + self.places[...][None], 0.0)
        return txt, txt.sum(axis=1) / jnp.maximum(present.sum(axis=1), 1)
