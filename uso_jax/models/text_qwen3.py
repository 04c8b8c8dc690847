# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The text side of FLUX.2 [klein]: Qwen3's hidden states of the prompt as a user's message, and no pooled vector.

Source: diffusers, pipeline_flux2_klein.py. The transformer reads padding too, as it comes out of Qwen3.
Shapes: b batch, t text tokens, d width.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from uso_jax.models.qwen3 import Qwen3Config, Qwen3Encoder
from uso_jax.models.text import CLIP_TOKENIZER, encode, load_tokenizer


@dataclass(frozen=True)
class Qwen3TextConfig:
    """One encoder and its tokenizer, a local folder or a name in the hub's cache, which has the chat template."""

    encoders: ClassVar[tuple[str, ...]] = ("qwen3",)
    vec_width: ClassVar[int] = 0

    qwen3: Qwen3Config = Qwen3Config()  # Qwen3's lower layers
    qwen3_length: int = 512  # text tokens of a prompt with its template; longer ones are cut
    qwen3_tokenizer: str = "Qwen/Qwen3-4B"  # a folder or a name in the hub's cache
    clip_tokenizer: str = CLIP_TOKENIZER  # of CLIP, where it rewards: a folder, a name in the hub's cache, or mini

    @classmethod
    def from_defaults(cls, sizes, defaults) -> "Qwen3TextConfig":
        return cls(sizes("qwen3"), defaults.qwen3_length, defaults.qwen3_tokenizer, defaults.clip_tokenizer)

    @property
    def txt_width(self) -> int:
        return self.qwen3.width

    @property
    def num_tokens(self) -> int:
        return self.qwen3_length

    def build(self, rngs: nnx.Rngs) -> "Qwen3Text":
        return Qwen3Text(self, rngs=rngs)

    def tokenize(self, prompt: str) -> dict[str, np.ndarray]:
        how = dict(padding="max_length", max_length=self.qwen3_length, truncation=True)
        encoded = encode(self.qwen3_tokenizer, self._message(prompt), **how)
        return {
            "qwen3_ids": np.asarray(encoded["input_ids"], np.int32),
            "qwen3_valid": np.asarray(encoded["attention_mask"], np.int32),
        }

    def token_counts(self) -> dict[str, int]:
        return {"qwen3_ids": self.qwen3_length, "qwen3_valid": self.qwen3_length}

    def is_cut(self, prompt: str) -> bool:
        return len(encode(self.qwen3_tokenizer, self._message(prompt))["input_ids"]) > self.qwen3_length

    def tokenizers(self) -> dict[str, Any]:
        return {"length": self.qwen3_length, "qwen3": self.qwen3_tokenizer}

    def _message(self, prompt: str) -> str:
        """Return the prompt in the tokenizer's chat template, up to where the answer without thinking begins."""
        return load_tokenizer(self.qwen3_tokenizer).apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )


class Qwen3Text(nnx.Module):
    """Qwen3 as the text side: token ids to text features."""

    def __init__(self, config: Qwen3TextConfig, *, rngs: nnx.Rngs):
        self.qwen3 = Qwen3Encoder(config.qwen3, rngs=rngs)

    def __call__(
        self, qwen3_ids: Int[Array, "b t"], qwen3_valid: Int[Array, "b t"]
    ) -> tuple[Float[Array, "b t d"], None]:
        """Encode the arrays that the config's `tokenize` returns."""
        return self.qwen3(qwen3_ids, qwen3_valid != 0), None
