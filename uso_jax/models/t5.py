# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The T5 v1.1 encoder, whose hidden states are FLUX's `txt` tokens.

Source: transformers, models/t5/modeling_t5.py (`T5EncoderModel`); arXiv 1910.10683. Parameter names match transformers,
except that `layer.0` and `layer.1` of a block are flattened; their norms are `layer_norm_0` and `layer_norm_1`.
Shapes: b batch, l tokens, d d_model, n heads, k d_kv.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from uso_jax.models.layers import scan
from uso_jax.models.layers.linear import Linear
from uso_jax.models.layers.mlp import gelu_tanh


@dataclass(frozen=True)
class T5Config:
    """Sizes and numerics of the encoder; the defaults are google/t5-v1_1-xxl."""

    vocab_size: int = 32128  # tokens of the vocabulary
    d_model: int = 4096  # width of the residual stream
    d_kv: int = 64  # width of an attention head
    d_ff: int = 10240  # width of the MLP
    num_layers: int = 24  # blocks
    num_heads: int = 64  # attention heads
    relative_attention_num_buckets: int = 32  # buckets of relative positions
    relative_attention_max_distance: int = 128  # distance from which positions share the last bucket
    layer_norm_epsilon: float = 1e-6  # added to the mean square in norms
    dtype: str = "bfloat16"  # of matrix products and the residual; this network overflows in float16
    remat: str = "full"  # a key of scan.REMAT_POLICIES

    def __post_init__(self):
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets < 4 or buckets % 2:
            raise ValueError(f"relative_attention_num_buckets must be even and at least 4, not {buckets}")
        if distance <= buckets // 4:
            raise ValueError(f"relative_attention_max_distance must exceed {buckets // 4}, not {distance}")
        scan.check_remat(self.remat)

    @classmethod
    def tiny(cls, **changes) -> "T5Config":
        """Return the config of a float32 encoder for tests that matches `FluxConfig.tiny`'s `context_in_dim`."""
        sizes = dict(
            vocab_size=64,
            d_model=20,
            d_kv=8,
            d_ff=40,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=16,
            dtype="float32",
            remat="none",
        )
        return cls(**(sizes | changes))


def relative_position_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Return the bucket of every key's distance from every query, [length, length].

    Half of the buckets are for keys after the query. In each half, the first buckets hold one distance each, and the
    others grow logarithmically up to `max_distance`; larger distances share the last bucket.
    """
    relative = np.arange(length)[None, :] - np.arange(length)[:, None]
    distance = np.abs(relative)
    half = num_buckets // 2
    exact = half // 2
    growth = np.log(np.maximum(distance, 1) / exact) / math.log(max_distance / exact)
    large = np.minimum(exact + (growth * (half - exact)).astype(np.int32), half - 1)
    return np.where(distance < exact, distance, large) + half * (relative > 0)


def _norm(config: T5Config, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(config.d_model, epsilon=config.layer_norm_epsilon, dtype=jnp.float32, rngs=rngs)


def _linear(config: T5Config, in_dim: int, out_dim: int, rngs: nnx.Rngs, **options) -> Linear:
    return Linear(in_dim, out_dim, use_bias=False, dtype=config.dtype, rngs=rngs, **options)


class T5Attention(nnx.Module):
    """Multi-head self-attention with unscaled logits and a position bias."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        c = config
        inner = c.num_heads * c.d_kv
        # The query initialisation includes the factor d_kv**-0.5 that attention lacks.
        small = nnx.initializers.variance_scaling(1 / c.d_kv, "fan_in", "normal")
        self.q = _linear(c, c.d_model, inner, rngs, kernel_init=small)
        self.k = _linear(c, c.d_model, inner, rngs)
        self.v = _linear(c, c.d_model, inner, rngs)
        self.o = _linear(c, inner, c.d_model, rngs)
        self.num_heads = c.num_heads

    def __call__(
        self, x: Float[Array, "b l d"], bias: Float[Array, "1 n l l"], valid: Bool[Array, "b 1 1 l"] | None
    ) -> Float[Array, "b l d"]:
        q, k, v = (layer(x).reshape(*x.shape[:2], self.num_heads, -1) for layer in (self.q, self.k, self.v))
        # `attention.dispatch` supports no full bias, and 512 tokens need no fused kernel. The softmax is in float32.
        out = jax.nn.dot_product_attention(q, k, v, bias=bias, mask=valid, scale=1.0, implementation="xla")
        return self.o(out.reshape(*x.shape[:2], -1))


class T5DenseReluDense(nnx.Module):
    """The feed-forward layer, gated by a GELU despite its name."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        c = config
        self.wi_0 = _linear(c, c.d_model, c.d_ff, rngs)
        self.wi_1 = _linear(c, c.d_model, c.d_ff, rngs)
        self.wo = _linear(c, c.d_ff, c.d_model, rngs)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        return self.wo(gelu_tanh(self.wi_0(x)) * self.wi_1(x))


class T5Block(nnx.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.layer_norm_0 = _norm(config, rngs)
        self.SelfAttention = T5Attention(config, rngs=rngs)
        self.layer_norm_1 = _norm(config, rngs)
        self.DenseReluDense = T5DenseReluDense(config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b l d"], bias: Float[Array, "1 n l l"], valid: Bool[Array, "b 1 1 l"] | None
    ) -> Float[Array, "b l d"]:
        x = x + self.SelfAttention(self.layer_norm_0(x).astype(x.dtype), bias, valid)
        return x + self.DenseReluDense(self.layer_norm_1(x).astype(x.dtype))


class T5Encoder(nnx.Module):
    """Encode token ids. All layers share one position bias, which PyTorch stores in the first block."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        c = self.config = config
        # As in T5: embeddings must dominate what layers add to them, and logits must dominate the bias.
        normal = nnx.initializers.normal
        self.shared = nnx.Embed(c.vocab_size, c.d_model, dtype=c.dtype, embedding_init=normal(1.0), rngs=rngs)
        self.relative_attention_bias = nnx.Embed(
            c.relative_attention_num_buckets,
            c.num_heads,
            dtype=jnp.float32,
            embedding_init=normal(c.d_model**-0.5),
            rngs=rngs,
        )
        self.block = scan.stack(lambda rngs: T5Block(c, rngs=rngs), c.num_layers, rngs)
        self.final_layer_norm = _norm(c, rngs)

    def position_bias(self, length: int) -> Float[Array, "1 n {length} {length}"]:
        """Return the bias that every layer adds to its attention logits, in float32."""
        c = self.config
        buckets = relative_position_buckets(length, c.relative_attention_num_buckets, c.relative_attention_max_distance)
        return jnp.moveaxis(self.relative_attention_bias(jnp.asarray(buckets, jnp.int32)), -1, 0)[None]

    def __call__(self, input_ids: Int[Array, "b l"], valid: Bool[Array, "b l"] | None = None) -> Float[Array, "b l d"]:
        """Return the last hidden state after the final norm. An id outside the vocabulary makes its sample NaN.

        Args:
          input_ids: token ids.
          valid: False at padding, which is then masked; outputs at these positions are undefined. Every sample needs a
            valid token. None attends to padding, as FLUX does.
        """
        bias = self.position_bias(input_ids.shape[1])
        mask = None if valid is None else valid[:, None, None, :]
        step = lambda block, x: block(x, bias, mask)
        x = scan.scan(self.block, step, self.shared(input_ids), remat=self.config.remat)
        return self.final_layer_norm(x).astype(x.dtype)
