# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""SigLIP: the vision tower, whose hidden states USO uses as style features, and the text transformer.

`SiglipVision` and `SiglipText` share one embedding space. `SiglipMatch` adds to the text transformer the learned scale
and bias of the logits of image-text pairs.

Source: transformers, models/siglip/modeling_siglip.py (`SiglipVisionModel`, `SiglipTextModel`, `SiglipModel`); arXiv
2303.15343, with its initial values. Parameter names match transformers.
Shapes: b batch, h w pixels, s vision tokens, l text tokens, m texts, c hidden_size, d projection_size.
"""

import itertools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from uso_jax.models.layers import scan
from uso_jax.models.layers.attention import MultiHeadAttention, check_heads
from uso_jax.models.layers.encoder_block import EncoderBlock, layer_norm
from uso_jax.models.layers.linear import Linear
from uso_jax.models.layers.mlp import MLP, gelu_tanh


@dataclass(frozen=True)
class SiglipConfig:
    """Sizes and numerics of the tower; the defaults are google/siglip-so400m-patch14-384."""

    hidden_size: int = 1152  # width of the residual stream
    intermediate_size: int = 4304  # width of the MLP
    num_hidden_layers: int = 27  # blocks
    num_attention_heads: int = 16  # attention heads
    image_size: int = 384  # pixels per side of an image
    patch_size: int = 14  # pixels per side of a patch
    stem: tuple[int, ...] = ()  # channels of convolutions before the patches that halve the image each; SigLIP has none
    layer_norm_eps: float = 1e-6  # added to the variance in norms
    dtype: str = "float32"  # of matrix products
    remat: str = "full"  # a key of scan.REMAT_POLICIES

    def __post_init__(self):
        check_heads(self.hidden_size, self.num_attention_heads)
        if self.patch_size % 2 ** len(self.stem):
            raise ValueError(f"patch_size {self.patch_size} does not divide by 2 for each convolution of the stem")
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is smaller than one patch of {self.patch_size}")

    @property
    def num_tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @classmethod
    def tiny(cls, **changes) -> "SiglipConfig":
        """Return the config of a tower for tests that matches `FluxConfig.tiny`'s projector."""
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
    """Tokens after the final norm, the pooled vector, and the requested hidden states."""

    last_hidden_state: Float[Array, "b s c"]
    pooler_output: Float[Array, "b c"]
    hidden_states: Float[Array, "b levels s c"]


def siglip_layer(config: "SiglipConfig | SiglipTextConfig", rngs: nnx.Rngs) -> EncoderBlock:
    """Return a layer of the vision tower or the text transformer."""
    c = config
    return EncoderBlock(
        c.hidden_size,
        c.intermediate_size,
        c.num_attention_heads,
        gelu_tanh,
        epsilon=c.layer_norm_eps,
        dtype=c.dtype,
        rngs=rngs,
    )


class SiglipPoolingHead(nnx.Module):
    """Attention pooling with one learned query."""

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        c = config
        self.probe = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, 1, c.hidden_size)))
        self.attention = MultiHeadAttention(c.hidden_size, c.num_attention_heads, dtype=c.dtype, rngs=rngs)
        self.layernorm = layer_norm(c.hidden_size, c.layer_norm_eps, rngs)
        self.mlp = MLP(c.hidden_size, c.intermediate_size, c.hidden_size, gelu_tanh, dtype=c.dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b s c"]) -> Float[Array, "b c"]:
        probe = jnp.broadcast_to(self.probe[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        x = self.attention(probe, x)
        return (x + self.mlp(self.layernorm(x).astype(x.dtype)))[:, 0]


class ConvolutionalStem(nnx.Module):
    """Strided convolutions with norms, each of which halves the image.

    A small tower on few images does not learn textures finer than a patch without them (arXiv 2106.14881).
    """

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        widths = (3, *config.stem)
        pairs = itertools.pairwise(widths)
        self.convs = nnx.List([nnx.Conv(i, o, (4, 4), (2, 2), dtype=config.dtype, rngs=rngs) for i, o in pairs])
        self.norms = nnx.List([layer_norm(width, config.layer_norm_eps, rngs) for width in config.stem])

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = gelu_tanh(norm(conv(x)).astype(x.dtype))
        return x


class SiglipVision(nnx.Module):
    """Encode images in [-1, 1] of `image_size` squared."""

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        side, channels = c.patch_size >> len(c.stem), c.stem[-1] if c.stem else 3
        patch = (side, side)
        self.stem = ConvolutionalStem(c, rngs=rngs) if c.stem else None
        self.patch_embedding = nnx.Conv(
            channels, c.hidden_size, patch, patch, padding="VALID", dtype=c.dtype, rngs=rngs
        )
        self.position_embedding = nnx.Embed(c.num_tokens, c.hidden_size, rngs=rngs)
        self.layers = scan.stack(lambda rngs: siglip_layer(c, rngs), c.num_hidden_layers, rngs)
        self.post_layernorm = layer_norm(c.hidden_size, c.layer_norm_eps, rngs)
        self.head = SiglipPoolingHead(c, rngs=rngs)

    def __call__(self, pixels: Float[Array, "b h w 3"], hidden_states: tuple[int, ...] = ()) -> SiglipOutput:
        """Encode images.

        Args:
          pixels: images in [-1, 1].
          hidden_states: indices into transformers' tuple of num_hidden_layers + 1 hidden states to return. Entry 0 is
            the embedding, entry i the output of layer i; negative indices count from the end.

        Raises:
          ValueError: a hidden state does not exist.
        """
        num_layers = self.config.num_hidden_layers
        for entry in hidden_states:
            if not -num_layers - 1 <= entry <= num_layers:
                raise ValueError(f"hidden state {entry} does not exist: the tower has {num_layers} layers")
        wanted = jnp.asarray([entry % (num_layers + 1) for entry in hidden_states], jnp.int32)

        x = pixels.astype(self.config.dtype)
        x = self.patch_embedding(x if self.stem is None else self.stem(x))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = x + self.position_embedding.embedding[...].astype(x.dtype)[None]
        kept = jnp.broadcast_to(x[:, None], (x.shape[0], len(hidden_states), *x.shape[1:]))

        def step(layer, carry):
            # Only the requested states are carried, so memory does not grow with depth.
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

    hidden_size: int = 1152  # width of the residual stream
    intermediate_size: int = 4304  # width of the MLP
    num_hidden_layers: int = 27  # blocks
    num_attention_heads: int = 16  # attention heads
    max_position_embeddings: int = 64  # text tokens
    vocab_size: int = 32000  # tokens of the vocabulary
    projection_size: int = 1152  # of the pooled output; equals the vision tower's hidden_size
    layer_norm_eps: float = 1e-6  # added to the variance in norms
    dtype: str = "float32"  # of matrix products
    remat: str = "full"  # a key of scan.REMAT_POLICIES

    def __post_init__(self):
        check_heads(self.hidden_size, self.num_attention_heads)
        scan.check_remat(self.remat)

    @classmethod
    def tiny(cls, **changes) -> "SiglipTextConfig":
        """Return the config of a transformer for tests that matches `SiglipConfig.tiny`."""
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
    """Tokens after the final norm, and the projection of the last one, not of unit length."""

    last_hidden_state: Float[Array, "b l c"]
    pooler_output: Float[Array, "b d"]


class SiglipText(nnx.Module):
    """Encode token ids. Attention is bidirectional and includes padding; pad to the maximum length as in training."""

    def __init__(self, config: SiglipTextConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        self.token_embedding = nnx.Embed(c.vocab_size, c.hidden_size, dtype=c.dtype, rngs=rngs)
        self.position_embedding = nnx.Embed(c.max_position_embeddings, c.hidden_size, dtype=c.dtype, rngs=rngs)
        self.layers = scan.stack(lambda rngs: siglip_layer(c, rngs), c.num_hidden_layers, rngs)
        self.final_layer_norm = layer_norm(c.hidden_size, c.layer_norm_eps, rngs)
        self.head = Linear(c.hidden_size, c.projection_size, dtype=c.dtype, rngs=rngs)

    def __call__(self, input_ids: Int[Array, "b l"]) -> SiglipTextOutput:
        """Encode texts. The pooled output is taken at the last position.

        An id outside the vocabulary makes its sample NaN.

        Raises:
          ValueError: there are more tokens than positions.
        """
        length, limit = input_ids.shape[1], self.config.max_position_embeddings
        if length > limit:
            raise ValueError(f"the text has {length} tokens; the transformer has {limit} positions")
        x = self.token_embedding(input_ids) + self.position_embedding(jnp.arange(length))[None]
        x = scan.scan(self.layers, lambda layer, x: layer(x), x, remat=self.config.remat)
        x = self.final_layer_norm(x).astype(x.dtype)
        return SiglipTextOutput(x, self.head(x[:, -1]))


class SiglipMatch(nnx.Module):
    """The text transformer with the scale and bias that `contrastive.sigmoid_loss` needs."""

    def __init__(self, config: SiglipTextConfig, *, rngs: nnx.Rngs):
        self.text = SiglipText(config, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.full((1,), math.log(10.0)))  # logarithm of the scale
        self.logit_bias = nnx.Param(jnp.full((1,), -10.0))

    def __call__(self, input_ids: Int[Array, "m l"]) -> Float[Array, "m d"]:
        """Return the embeddings of texts, not of unit length."""
        return self.text(input_ids).pooler_output
