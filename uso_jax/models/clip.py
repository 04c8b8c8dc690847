# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""CLIP's text transformer, whose pooled output is FLUX's `vec`.

Source: transformers, models/clip/modeling_clip.py (`CLIPTextModel`); arXiv 2103.00020. Names are transformers'.
Shapes: b batch, l tokens, c hidden_size.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from uso_jax.models import stack
from uso_jax.models.mlp import MLP

LEGACY_EOS = 2
"""What configs written before transformers 4.31 call the end-of-text token; the highest id marks the end instead."""


@dataclass(frozen=True)
class ClipTextConfig:
    """Sizes and numerics of the text transformer; the defaults are openai/clip-vit-large-patch14."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    dtype: str = "bfloat16"  # of matrix products and the residual; norms and softmax stay in float32
    remat: str = "full"  # one of stack.REMAT_POLICIES

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} heads")
        if not 0 <= self.eos_token_id < self.vocab_size:
            raise ValueError(f"eos_token_id {self.eos_token_id} is outside the vocabulary of {self.vocab_size}")
        if self.remat not in stack.REMAT_POLICIES:
            raise ValueError(f"remat must be one of {', '.join(stack.REMAT_POLICIES)}, not {self.remat!r}")

    @classmethod
    def tiny(cls, **changes) -> "ClipTextConfig":
        """Give a float32 transformer that fits `FluxConfig.tiny`'s pooled text vector."""
        sizes = dict(
            vocab_size=64,
            hidden_size=12,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            eos_token_id=63,
            dtype="float32",
            remat="none",
        )
        return cls(**(sizes | changes))


@jax.tree_util.register_dataclass
@dataclass
class ClipTextOutput:
    """What the text transformer gives: normalised tokens and the one at the end of the text."""

    last_hidden_state: Float[Array, "b l c"]
    pooler_output: Float[Array, "b c"]


def quick_gelu(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """GELU approximated by a sigmoid, which OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def end_of_text(input_ids: Int[Array, "b l"], eos_token_id: int) -> Int[Array, " b"]:
    """Give the position of each text's first end-of-text token, or 0 where there is none."""
    return jnp.argmax(input_ids if eos_token_id == LEGACY_EOS else input_ids == eos_token_id, axis=1)


def _norm(config: ClipTextConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.hidden_size, epsilon=config.layer_norm_eps, dtype=jnp.float32, use_fast_variance=False, rngs=rngs
    )


class ClipAttention(nnx.Module):
    """Multi-head self-attention with separate query, key and value projections."""

    def __init__(self, config: ClipTextConfig, *, causal: bool, rngs: nnx.Rngs):
        self.num_heads = config.num_attention_heads
        self.causal = causal
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nnx.Linear(config.hidden_size, config.hidden_size, dtype=config.dtype, rngs=rngs))

    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q, k, v = (y.reshape(*x.shape[:2], self.num_heads, -1) for y in (q, k, v))
        # `uso_jax.attention` knows no causal mask, and 77 tokens need no fused kernel; the softmax is in float32.
        out = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal, implementation="xla")
        return self.out_proj(out.reshape(x.shape))


class ClipLayer(nnx.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: ClipTextConfig, *, causal: bool, rngs: nnx.Rngs):
        c = config
        self.layer_norm1 = _norm(c, rngs)
        self.self_attn = ClipAttention(c, causal=causal, rngs=rngs)
        self.layer_norm2 = _norm(c, rngs)
        self.mlp = MLP(c.hidden_size, c.intermediate_size, c.hidden_size, quick_gelu, dtype=c.dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        x = x + self.self_attn(self.layer_norm1(x).astype(x.dtype))
        return x + self.mlp(self.layer_norm2(x).astype(x.dtype))


class ClipText(nnx.Module):
    """Encode token ids; attention is causal, so padding after the end of the text cannot reach the pooled output."""

    def __init__(self, config: ClipTextConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        self.token_embedding = nnx.Embed(c.vocab_size, c.hidden_size, dtype=c.dtype, rngs=rngs)
        self.position_embedding = nnx.Embed(c.max_position_embeddings, c.hidden_size, dtype=c.dtype, rngs=rngs)
        self.layers = stack.stack(lambda rngs: ClipLayer(c, causal=True, rngs=rngs), c.num_hidden_layers, rngs)
        self.final_layer_norm = _norm(c, rngs)

    def __call__(self, input_ids: Int[Array, "b l"]) -> ClipTextOutput:
        """Give the normalised last hidden state, whole and at the end of the text, without CLIP's text projection.

        An id outside the vocabulary makes what follows it NaN.
        """
        length, limit = input_ids.shape[1], self.config.max_position_embeddings
        if length > limit:
            raise ValueError(f"{length} tokens are too many: this text transformer has {limit} positions")
        x = self.token_embedding(input_ids) + self.position_embedding(jnp.arange(length))[None]
        x = stack.scan(self.layers, lambda layer, x: layer(x), x, remat=self.config.remat)
        x = self.final_layer_norm(x).astype(x.dtype)
        end = end_of_text(input_ids, self.config.eos_token_id)
        return ClipTextOutput(x, jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0])
