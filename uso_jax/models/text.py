# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From a prompt to what the transformer reads: features of every text token, and a pooled vector if the model has one.

Prompts are tokenised on the host, one at a time, and encoded on the device. Each base model has one class here (or in a
file beside this one) that follows `TextConfig`.
Shapes: b batch, t text tokens, d width, v pooled width.
"""

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from uso_jax import mini
from uso_jax.common.errors import InputError
from uso_jax.models.clip import ClipText, ClipTextConfig
from uso_jax.models.t5 import T5Config, T5Encoder

CLIP_TOKENIZER = "openai/clip-vit-large-patch14"  # all released CLIPs share it


@runtime_checkable
class TextConfig(Protocol):
    """The text side of a base model: one encoder or more, with or without a pooled vector.

    Attributes:
      encoders: rows of `uso_jax.models.components`, in order; each is also a field that holds its config.
      txt_width: channels of a text token, `d`.
      vec_width: channels of the pooled vector, `v`; 0 if there is none.
      num_tokens: text tokens of every prompt, `t`.
      clip_tokenizer: of CLIP, with which rewards read prompts, whether or not CLIP is one of the encoders.
    """

    encoders: ClassVar[tuple[str, ...]]
    txt_width: int
    vec_width: int
    num_tokens: int
    clip_tokenizer: str

    @classmethod
    def from_defaults(cls, sizes: Callable[[str], Any], defaults: Any) -> "TextConfig":
        """Return the text side of a weights directory: encoders' configs by name, and tokenizers from its defaults."""

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """Build the module: token ids by name -> (text features [b, t, d], pooled vector [b, v] or None)."""

    def tokenize(self, prompt: str) -> dict[str, np.ndarray]:
        """Return the prompt's token ids, padded or cut to fixed lengths; the names are the module's arguments."""

    def token_counts(self) -> dict[str, int]:
        """Return how many ids `tokenize` returns by name, without a tokenizer."""

    def is_cut(self, prompt: str) -> bool:
        """Return whether the prompt is longer than the text tokens."""

    def tokenizers(self) -> dict[str, Any]:
        """Return what decides the token ids, in JSON terms; part of the fingerprint of precomputed features."""


@dataclass(frozen=True)
class T5ClipConfig:
    """The text side of FLUX.1: T5's features and CLIP's pooled vector.

    Tokenizers are local folders, names in the hub's cache, or "mini" for the one in this package.
    """

    encoders: ClassVar[tuple[str, ...]] = ("t5", "clip")

    t5: T5Config = T5Config()  # T5's encoder
    clip: ClipTextConfig = ClipTextConfig()  # CLIP's text transformer
    t5_length: int = 512  # text tokens of a prompt; longer ones are cut
    t5_tokenizer: str = "google/t5-v1_1-xxl"  # T5's tokenizer: a folder, a name in the hub's cache, or mini
    clip_tokenizer: str = CLIP_TOKENIZER  # CLIP's tokenizer: a folder, a name in the hub's cache, or mini

    @classmethod
    def from_defaults(cls, sizes: Callable[[str], Any], defaults: Any) -> "T5ClipConfig":
        return cls(
            t5=sizes("t5"),
            clip=sizes("clip"),
            t5_length=defaults.t5_length,
            t5_tokenizer=defaults.t5_tokenizer,
            clip_tokenizer=defaults.clip_tokenizer,
        )

    @property
    def txt_width(self) -> int:
        return self.t5.d_model

    @property
    def vec_width(self) -> int:
        return self.clip.hidden_size

    @property
    def num_tokens(self) -> int:
        return self.t5_length

    def build(self, rngs: nnx.Rngs) -> "TextEncoder":
        return TextEncoder(self, rngs=rngs)

    def tokenize(self, prompt: str) -> dict[str, np.ndarray]:
        return {
            "t5_ids": token_ids(self.t5_tokenizer, prompt, self.t5_length),
            "clip_ids": token_ids(self.clip_tokenizer, prompt, self.clip.max_position_embeddings),
        }

    def token_counts(self) -> dict[str, int]:
        return {"t5_ids": self.t5_length, "clip_ids": self.clip.max_position_embeddings}

    def is_cut(self, prompt: str) -> bool:
        # CLIP's shorter window does not count: it only gives the pooled vector. Cut text still ends in the end token,
        # which then stands where a longer window continues with the prompt.
        ids, longer = (token_ids(self.t5_tokenizer, prompt, self.t5_length + more) for more in (0, 1))
        return bool((longer[: len(ids)] != ids).any())

    def tokenizers(self) -> dict[str, Any]:
        return {"length": self.t5_length, "t5": self.t5_tokenizer, "clip": self.clip_tokenizer}


class TextEncoder(nnx.Module):
    """T5 and CLIP as one module: token ids to (text features, pooled vector)."""

    def __init__(self, config: T5ClipConfig, *, rngs: nnx.Rngs):
        self.t5 = T5Encoder(config.t5, rngs=rngs)
        self.clip = ClipText(config.clip, rngs=rngs)

    def __call__(
        self, t5_ids: Int[Array, "b t"], clip_ids: Int[Array, "b u"]
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b v"]]:
        """Encode the arrays that the config's `tokenize` returns."""
        return self.t5(t5_ids), self.clip(clip_ids).pooler_output


_one_at_a_time = threading.Lock()  # a tokenizer of transformers keeps the length of a call in itself


def token_ids(tokenizer: str, prompt: str, length: int) -> Int[np.ndarray, " {length}"]:
    """Return a prompt's token ids, padded or cut to a length."""
    if tokenizer == "mini":
        return np.asarray(_mini_tokenizer(length).encode(prompt).ids, np.int32)
    encoded = encode(tokenizer, prompt, padding="max_length", max_length=length, truncation=True)
    return np.asarray(encoded["input_ids"], np.int32)


def encode(tokenizer: str, text: str, **options: Any) -> Mapping[str, Any]:
    """Return what a tokenizer of transformers makes of a text."""
    with _one_at_a_time:
        return load_tokenizer(tokenizer)(text, **options)


@functools.cache
def _mini_tokenizer(length: int):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(mini.TOKENIZER))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=0, pad_token="<pad>")
    return tokenizer


@functools.cache
def load_tokenizer(name: str):
    """Return a tokenizer of transformers from a folder or the hub's cache, without a network.

    Raises:
      InputError: there is none.
    """
    from transformers import AutoTokenizer  # slow to import, and mini does without

    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"tokenizer {name!r} is neither a tokenizer's folder nor in the hub's cache; to draw, put its files into"
            " tokenizer_NAME of the weights directory (NAME is t5, clip or qwen3), to train, name their folder in"
            " --config.model.text.NAME_tokenizer"
        ) from error
