# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The SigLIP vision tower with its hidden states, from which USO reads style.

Source: transformers, models/siglip/modeling_siglip.py (`SiglipVisionModel`); arXiv 2303.15343. Names are transformers'.
Shapes: b batch, h w pixels, s vision tokens, c hidden_size.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from uso_jax.models.layers import scan
from uso_jax.models.layers.attention import MultiHeadAttention, check_heads
from uso_jax.models.layers.mlp import MLP, gelu_tanh


@dataclass(frozen=True)
class SiglipConfig:
    """Sizes of the tower; the defaults are google/siglip-so400m-patch14-384."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    image_size: int = 384
    patch_size: int = 14
    layer_norm_eps: float = 1e-6
    dtype: str = "float32"
    remat: str = "full"

    def __post_init__(self):
        check_heads(self.hidden_size, self.num_attention_heads)
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is smaller than one patch of {self.patch_size}")

    @property
    def num_tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @classmethod
    def tiny(cls, **changes) -> "SiglipConfig":
        """Give a tower that fits `FluxConfig.tiny`'s projector."""
        sizes = dict(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=5,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
            remat="none",
        )
        return cls(**(sizes | changes))


@jax.tree_util.register_dataclass
@dataclass
class SiglipOutput:
    """What the tower gives: normalised tokens, the pooled vector, and the hidden states that were asked for."""

    last_hidden_state: Float[Array, "b s c"]
    pooler_output: Float[Array, "b c"]
    hidden_states: Float[Array, "b levels s c"]


@runtime_checkable
class LayerSizes(Protocol):
    """What a layer needs to know, of this tower or of the text transformer (uso_jax.models.siglip)."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    layer_norm_eps: float
    dtype: str


def _norm(config: LayerSizes, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.hidden_size, epsilon=config.layer_norm_eps, dtype=jnp.float32, use_fast_variance=False, rngs=rngs
    )


class SiglipLayer(nnx.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: LayerSizes, *, rngs: nnx.Rngs):
        c = config
        self.layer_norm1 = _norm(c, rngs)
        self.self_attn = MultiHeadAttention(c.hidden_size, c.num_attention_heads, dtype=c.dtype, rngs=rngs)
        self.layer_norm2 = _norm(c, rngs)
        self.mlp = MLP(c.hidden_size, c.intermediate_size, c.hidden_size, gelu_tanh, dtype=c.dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
        y = self.layer_norm1(x).astype(x.dtype)
        x = x + self.self_attn(y, y)
        return x + self.mlp(self.layer_norm2(x).astype(x.dtype))


class SiglipPoolingHead(nnx.Module):
    """Pool the tokens by attention from one learned query."""

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        c = config
        self.probe = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, 1, c.hidden_size)))
        self.attention = MultiHeadAttention(c.hidden_size, c.num_attention_heads, dtype=c.dtype, rngs=rngs)
        self.layernorm = _norm(c, rngs)
        self.mlp = MLP(c.hidden_size, c.intermediate_size, c.hidden_size, gelu_tanh, dtype=c.dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b s c"]) -> Float[Array, "b c"]:
        probe = jnp.broadcast_to(self.probe[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        x = self.attention(probe, x)
        return (x + self.mlp(self.layernorm(x).astype(x.dtype)))[:, 0]


class SiglipVision(nnx.Module):
    """Encode images, normalised to [-1, 1] at `image_size` squared."""

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        patch = (c.patch_size, c.patch_size)
        self.patch_embedding = nnx.Conv(3, c.hidden_size, patch, patch, padding="VALID", dtype=c.dtype, rngs=rngs)
        self.position_embedding = nnx.Embed(c.num_tokens, c.hidden_size, rngs=rngs)
        self.layers = scan.stack(lambda rngs: SiglipLayer(c, rngs=rngs), c.num_hidden_layers, rngs)
        self.post_layernorm = _norm(c, rngs)
        self.head = SiglipPoolingHead(c, rngs=rngs)

    def __call__(self, pixels: Float[Array, "b h w 3"], hidden_states: tuple[int, ...] = ()) -> SiglipOutput:
        """Encode images; `hidden_states` lists the entries to keep of transformers' tuple of num_hidden_layers + 1.

        Entry 0 is the embedding, entry i the output of layer i; negative numbers count from the end.
        """
        num_layers = self.config.num_hidden_layers
        for entry in hidden_states:
            if not -num_layers - 1 <= entry <= num_layers:
                raise ValueError(f"hidden state {entry} does not exist: the tower has {num_layers} layers")
        wanted = jnp.asarray([entry % (num_layers + 1) for entry in hidden_states], jnp.int32)

        x = self.patch_embedding(pixels.astype(self.config.dtype))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = x + self.position_embedding.embedding[...].astype(x.dtype)[None]
        kept = jnp.broadcast_to(x[:, None], (x.shape[0], len(hidden_states), *x.shape[1:]))

        def step(layer, carry):
            # Only the wanted states are carried, so memory does not grow with depth.
            index, x, kept = carry
            index, x = index + 1, layer(x)
            return index, x, jnp.where((wanted == index)[None, :, None, None], x[:, None], kept)

        carry = (jnp.zeros((), jnp.int32), x, kept)
        _, x, kept = scan.scan(self.layers, step, carry, remat=self.config.remat)
        x = self.post_layernorm(x).astype(x.dtype)
        return SiglipOutput(x, self.head(x), kept)


@dataclass(frozen=True)
class SiglipTextConfig:
    """Sizes and numerics of the transformer; the defaults are google/siglip-so400m-patch14-384."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    max_position_embeddings: int = 64
    vocab_size: int = 32000
    projection_size: int = 1152  # of the pooled output: the vision tower's hidden_size, where the two are compared
    layer_norm_eps: float = 1e-6
    dtype: str = "float32"
    remat: str = "full"

    def __post_init__(self):
        check_heads(self.hidden_size, self.num_attention_heads)
        scan.check_remat(self.remat)

    @classmethod
    def tiny(cls, **changes) -> "SiglipTextConfig":
        """Give a transformer that meets `SiglipConfig.tiny`'s tower."""
        sizes = dict(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=12,
            vocab_size=64,
            projection_size=24,
            remat="none",
        )
        return cls(**(sizes | changes))


@jax.tree_util.register_dataclass
@dataclass
class SiglipTextOutput:
    """What the transformer gives: normalised tokens, and the projection of the last one (not of length 1)."""

    last_hidden_state: Float[Array, "b l c"]
    pooler_output: Float[Array, "b d"]


class SiglipText(nnx.Module):
    """Encode token ids; attention goes both ways and to padding too, so pad as in training: to the longest length."""

    def __init__(self, config: SiglipTextConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        self.token_embedding = nnx.Embed(c.vocab_size, c.hidden_size, dtype=c.dtype, rngs=rngs)
        self.position_embedding = nnx.Embed(c.max_position_embeddings, c.hidden_size, dtype=c.dtype, rngs=rngs)
        self.layers = scan.stack(lambda rngs: SiglipLayer(c, rngs=rngs), c.num_hidden_layers, rngs)
        self.final_layer_norm = nnx.LayerNorm(
            c.hidden_size, epsilon=c.layer_norm_eps, dtype=jnp.float32, use_fast_variance=False, rngs=rngs
        )
        self.head = nnx.Linear(c.hidden_size, c.projection_size, dtype=c.dtype, rngs=rngs)

    def __call__(self, input_ids: Int[Array, "b l"]) -> SiglipTextOutput:
        """Give the normalised last hidden state and the pooled output, which is read at the last token given.

        An id outside the vocabulary makes its sample NaN.
        """
        length, limit = input_ids.shape[1], self.config.max_position_embeddings
        if length > limit:
            raise ValueError(f"{length} tokens are too many: this text transformer has {limit} positions")
        x = self.token_embedding(input_ids) + self.position_embedding(jnp.arange(length))[None]
        x = scan.scan(self.layers, lambda layer, x: layer(x), x, remat=self.config.remat)
        x = self.final_layer_norm(x).astype(x.dtype)
        return SiglipTextOutput(x, self.head(x[:, -1]))


class SiglipMatch(nnx.Module):
    """Give texts' vectors, and what `contrastive.sigmoid_loss` needs besides."""

    def __init__(self, config: SiglipTextConfig, *, rngs: nnx.Rngs):
        self.text = SiglipText(config, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.full((1,), math.log(10.0)))  # as its logarithm
        self.logit_bias = nnx.Param(jnp.full((1,), -10.0))

    def __call__(self, input_ids: Int[Array, "m l"]) -> Float[Array, "m d"]:
        """Encode texts; their vectors are not of length 1."""
        return self.text(input_ids).pooler_output
