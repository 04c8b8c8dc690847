# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From a prompt to what the transformer reads: features of every text token and one pooled vector.

Tokens are made on the host, one prompt at a time; encoding runs on the device.
Shapes: b batch, t text tokens, d width, v pooled width.
"""

import functools
from dataclasses import dataclass

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from uso_jax import mini
from uso_jax.common.errors import InputError
from uso_jax.models.clip import ClipText, ClipTextConfig
from uso_jax.models.t5 import T5Config, T5Encoder


@dataclass(frozen=True)
class T5ClipConfig:
    """FLUX's text: T5 features and CLIP's pooled vector.

    Tokenizers are local folders, names in the hub's cache, or "mini" for the one that comes with the package.
    """

    t5: T5Config = T5Config()
    clip: ClipTextConfig = ClipTextConfig()
    t5_length: int = 512
    t5_tokenizer: str = "google/t5-v1_1-xxl"
    clip_tokenizer: str = "openai/clip-vit-large-patch14"

    @property
    def txt_width(self) -> int:
        return self.t5.d_model

    @property
    def vec_width(self) -> int:
        return self.clip.hidden_size

    def tokenize(self, prompt: str) -> dict[str, np.ndarray]:
        """Give the prompt's token ids, padded or cut to fixed lengths; the names are the encoder's arguments."""
        return {
            "t5_ids": token_ids(self.t5_tokenizer, prompt, self.t5_length),
            "clip_ids": token_ids(self.clip_tokenizer, prompt, self.clip.max_position_embeddings),
        }


class TextEncoder(nnx.Module):
    """Encode token ids to (text features, pooled vector)."""

    def __init__(self, config: T5ClipConfig, *, rngs: nnx.Rngs):
        self.t5 = T5Encoder(config.t5, rngs=rngs)
        self.clip = ClipText(config.clip, rngs=rngs)

    def __call__(
        self, t5_ids: Int[Array, "b t"], clip_ids: Int[Array, "b u"]
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b v"]]:
        """Give (text features, pooled vector) of the arrays that the config's `tokenize` makes."""
        return self.t5(t5_ids), self.clip(clip_ids).pooler_output


def token_ids(tokenizer: str, prompt: str, length: int) -> Int[np.ndarray, " {length}"]:
    """Give a prompt's token ids, padded or cut to a length."""
    if tokenizer == "mini":
        return np.asarray(_mini_tokenizer(length).encode(prompt).ids, np.int32)
    encoded = _tokenizer(tokenizer)(prompt, padding="max_length", max_length=length, truncation=True)
    return np.asarray(encoded["input_ids"], np.int32)


@functools.cache
def _mini_tokenizer(length: int):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(mini.TOKENIZER))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=0, pad_token="<pad>")
    return tokenizer


@functools.cache
def _tokenizer(name: str):
    from transformers import AutoTokenizer  # slow to import, and mini does without

    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"tokenizer {name!r} is neither a tokenizer's folder nor in the hub's cache; to draw, put its files into"
            " tokenizer_t5 or tokenizer_clip of the weights directory, to train, name their folder in"
            " --config.model.text.t5_tokenizer or .clip_tokenizer"
        ) from error
