# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""ImageReward: predicted human preference for an image given a prompt.

Source: https://github.com/THUDM/ImageReward, ImageReward.py and models/BLIP; arXiv 2304.05977. A vision transformer
(with DINO's layout), BERT with cross-attention to its tokens, and five linear layers without activation. Parameter
names of the text part match transformers' `BlipTextModel`, with attention split into q, k, v.
Shapes: b batch, h w pixels, l text tokens, s vision tokens, c hidden_size, d width of keys.
"""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from uso_jax.models.dino import Dino, DinoConfig, gelu
from uso_jax.models.layers import scan
from uso_jax.models.layers.attention import check_heads
from uso_jax.models.layers.encoder_block import layer_norm
from uso_jax.models.layers.mlp import MLP

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of raw rewards on the authors' data
MAX_TOKENS = 35
_EPSILON = 1e-12  # of layer norms


@dataclass(frozen=True)
class BertConfig:
    """Sizes of the text part; the defaults are those of the released model."""

    vocab_size: int = 30524
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 512
    encoder_hidden_size: int = 1024
    dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self):
        check_heads(self.hidden_size, self.num_attention_heads)
        scan.check_remat(self.remat)


@dataclass(frozen=True)
class ImageRewardConfig:
    """Both parts; the defaults are those of the released model."""

    vision: DinoConfig = DinoConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
    )
    text: BertConfig = BertConfig()

    def __post_init__(self):
        has, wants = self.vision.hidden_size, self.text.encoder_hidden_size
        if has != wants:
            raise ValueError(f"text.encoder_hidden_size {wants} must equal vision.hidden_size {has}")


class _Attention(nnx.Module):
    """Post-norm attention with a residual connection."""

    def __init__(self, config: BertConfig, key_width: int, *, rngs: nnx.Rngs):
        c, self.num_heads = config, config.num_attention_heads
        self.query = nnx.Linear(c.hidden_size, c.hidden_size, rngs=rngs)
        self.key, self.value = (nnx.Linear(key_width, c.hidden_size, rngs=rngs) for _ in range(2))
        self.dense = nnx.Linear(c.hidden_size, c.hidden_size, rngs=rngs)
        self.norm = layer_norm(c.hidden_size, _EPSILON, rngs)

    def __call__(
        self, x: Float[Array, "b l c"], keys: Float[Array, "b s d"], valid: Bool[Array, "b s"] | None = None
    ) -> Float[Array, "b l c"]:
        q, k, v = (
            y.reshape(*y.shape[:2], self.num_heads, -1) for y in (self.query(x), self.key(keys), self.value(keys))
        )
        mask = None if valid is None else valid[:, None, None]
        out = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla").reshape(x.shape)
        return self.norm(self.dense(out) + x)


class _Layer(nnx.Module):
    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        c = config
        self.attention = _Attention(c, c.hidden_size, rngs=rngs)
        self.crossattention = _Attention(c, c.encoder_hidden_size, rngs=rngs)
        self.mlp = MLP(c.hidden_size, c.intermediate_size, c.hidden_size, gelu, dtype=c.dtype, rngs=rngs)
        self.norm = layer_norm(c.hidden_size, _EPSILON, rngs)


class ImageReward(nnx.Module):
    """Score images, preprocessed as for CLIP, given prompts of at most 35 tokens."""

    def __init__(self, config: ImageRewardConfig = ImageRewardConfig(), *, rngs: nnx.Rngs):
        self.config, c = config, config.text
        self.visual_encoder = Dino(config.vision, rngs=rngs)
        self.word_embeddings = nnx.Embed(c.vocab_size, c.hidden_size, rngs=rngs)
        self.position_embeddings = nnx.Embed(c.max_position_embeddings, c.hidden_size, rngs=rngs)
        self.norm = layer_norm(c.hidden_size, _EPSILON, rngs)
        self.layers = scan.stack(lambda rngs: _Layer(c, rngs=rngs), c.num_hidden_layers, rngs)
        widths = (c.hidden_size, 1024, 128, 64, 16, 1)
        self.mlp = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in itertools.pairwise(widths)])

    def __call__(
        self, pixels: Float[Array, "b h w 3"], input_ids: Int[Array, "b l"], valid: Bool[Array, "b l"]
    ) -> Float[Array, " b"]:
        """Return rewards with mean 0 and standard deviation 1 over the authors' data; `valid` is False at padding."""
        seen = self.visual_encoder(pixels).last_hidden_state
        positions = self.position_embeddings(jnp.arange(input_ids.shape[1]))[None]
        x = self.norm(self.word_embeddings(input_ids) + positions)

        def step(layer, x):
            x = layer.crossattention(layer.attention(x, x, valid), seen)
            return layer.norm(layer.mlp(x) + x)

        x = scan.scan(self.layers, step, x)[:, 0]
        for layer in self.mlp:
            x = layer(x)
        return (x[:, 0] - MEAN) / STD
