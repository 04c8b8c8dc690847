# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""CLIP: the text transformer, whose pooled output is FLUX's `vec`, and the vision tower, used by metrics.

Source: transformers, models/clip/modeling_clip.py (`CLIPTextModel`, `CLIPVisionModel`, `CLIPModel`); arXiv 2103.00020.
Parameter names match transformers, except that each tower owns its projection.
Shapes: b batch, l text tokens, h w pixels, s vision tokens (the class token first), c hidden_size, d projection_dim.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from uso_jax.models.layers import scan
from uso_jax.models.layers.attention import check_heads
from uso_jax.models.layers.encoder_block import EncoderBlock, layer_norm
from uso_jax.models.layers.linear import Linear

LEGACY_EOS = 2
"""`eos_token_id` in configs from before transformers 4.31. It is wrong; the highest id in a text marks its end."""


def _check(config: "ClipTextConfig | ClipVisionConfig") -> None:
    c = config
    check_heads(c.hidden_size, c.num_attention_heads)
    if c.projection_dim < 0:
        raise ValueError(f"projection_dim must be positive, or 0 for no projection, not {c.projection_dim}")
    scan.check_remat(c.remat)


@dataclass(frozen=True)
class ClipTextConfig:
    """Sizes and numerics of the text transformer; the defaults are openai/clip-vit-large-patch14."""

    vocab_size: int = 49408  # tokens of the vocabulary
    hidden_size: int = 768  # width of the residual stream
    intermediate_size: int = 3072  # width of the MLP
    num_hidden_layers: int = 12  # blocks
    num_attention_heads: int = 12  # attention heads
    max_position_embeddings: int = 77  # text tokens
    layer_norm_eps: float = 1e-5  # added to the variance in norms
    eos_token_id: int = 49407  # id of the end token, where the text is pooled
    projection_dim: int = 0  # width of the joint image-text embedding; 0: no projection, as in FLUX
    dtype: str = "bfloat16"  # of matrix products and the residual; norms and softmax use float32
    remat: str = "full"  # a key of scan.REMAT_POLICIES

    def __post_init__(self):
        _check(self)
        if not 0 <= self.eos_token_id < self.vocab_size:
            raise ValueError(f"eos_token_id {self.eos_token_id} is outside the vocabulary of {self.vocab_size}")

    @classmethod
    def tiny(cls, **changes) -> "ClipTextConfig":
        """Return the config of a float32 transformer for tests that matches `FluxConfig.tiny`'s `vec_in_dim`."""
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


@dataclass(frozen=True)
class ClipVisionConfig:
    """Sizes and numerics of the vision tower; the defaults are openai/clip-vit-base-patch32."""

    hidden_size: int = 768  # width of the residual stream
    intermediate_size: int = 3072  # width of the MLP
    num_hidden_layers: int = 12  # blocks
    num_attention_heads: int = 12  # attention heads
    image_size: int = 224  # pixels per side of an image
    patch_size: int = 32  # pixels per side of a patch
    layer_norm_eps: float = 1e-5  # added to the variance in norms
    projection_dim: int = 512  # width of the joint image-text embedding; 0: no projection
    dtype: str = "float32"  # of matrix products
    remat: str = "full"  # a key of scan.REMAT_POLICIES

    def __post_init__(self):
        _check(self)
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is smaller than one patch of {self.patch_size}")

    @property
    def num_tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2 + 1

    @classmethod
    def tiny(cls, **changes) -> "ClipVisionConfig":
        """Return the config of a tower for tests."""
        sizes = dict(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            projection_dim=10,
            remat="none",
        )
        return cls(**(sizes | changes))


@dataclass(frozen=True)
class ClipConfig:
    """Both towers; the defaults are openai/clip-vit-base-patch32 in float32, for metrics."""

    vision: ClipVisionConfig = ClipVisionConfig()  # the vision tower
    text: ClipTextConfig = ClipTextConfig(
        hidden_size=512, intermediate_size=2048, num_attention_heads=8, projection_dim=512, dtype="float32"
    )

    def __post_init__(self):
        image, text = self.vision.projection_dim, self.text.projection_dim
        if not image or image != text:
            raise ValueError(f"both towers need the same projection_dim, not {image} (vision) and {text} (text)")

    @classmethod
    def tiny(cls, **changes) -> "ClipConfig":
        """Return the config of two tiny towers for tests."""
        sizes = dict(vision=ClipVisionConfig.tiny(), text=ClipTextConfig.tiny(projection_dim=10))
        return cls(**(sizes | changes))


CLIP: Mapping[str, ClipConfig] = {
    "B/32": ClipConfig(),
    "B/16": ClipConfig(vision=ClipVisionConfig(patch_size=16)),
    "L/14": ClipConfig(
        vision=ClipVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            patch_size=14,
            projection_dim=768,
        ),
        text=ClipTextConfig(projection_dim=768, dtype="float32"),
    ),
}
"""The released models, by OpenAI's short names."""


@jax.tree_util.register_dataclass
@dataclass
class ClipTextOutput:
    """Output of the text transformer.

    Attributes:
      last_hidden_state: tokens after the final norm.
      pooler_output: the token at the end of the text.
      text_embeds: its projection, if the config has one; not of unit length.
    """

    last_hidden_state: Float[Array, "b l c"]
    pooler_output: Float[Array, "b c"]
    text_embeds: Float[Array, "b d"] | None = None


@jax.tree_util.register_dataclass
@dataclass
class ClipVisionOutput:
    """Output of the vision tower.

    Attributes:
      last_hidden_state: tokens before the final norm, the class token first.
      pooler_output: the class token after the final norm.
      image_embeds: its projection, if the config has one; not of unit length.
    """

    last_hidden_state: Float[Array, "b s c"]
    pooler_output: Float[Array, "b c"]
    image_embeds: Float[Array, "b d"] | None = None


def quick_gelu(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Apply the sigmoid approximation of GELU that OpenAI's CLIP uses."""
    return x * jax.nn.sigmoid(1.702 * x)


def end_of_text(input_ids: Int[Array, "b l"], eos_token_id: int) -> Int[Array, " b"]:
    """Return the position of each text's first end-of-text token, or 0 if there is none."""
    return jnp.argmax(input_ids if eos_token_id == LEGACY_EOS else input_ids == eos_token_id, axis=1)


def unit(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Scale vectors to unit length in float32. Zero vectors stay zero and have a finite gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def clip_layer(config: ClipTextConfig | ClipVisionConfig, causal: bool, rngs: nnx.Rngs) -> EncoderBlock:
    """Return a layer of either tower."""
    c = config
    return EncoderBlock(
        c.hidden_size,
        c.intermediate_size,
        c.num_attention_heads,
        quick_gelu,
        epsilon=c.layer_norm_eps,
        causal=causal,
        dtype=c.dtype,
        rngs=rngs,
    )


def _projection(config: ClipTextConfig | ClipVisionConfig, rngs: nnx.Rngs) -> Linear:
    return Linear(config.hidden_size, config.projection_dim, use_bias=False, dtype=config.dtype, rngs=rngs)


class ClipText(nnx.Module):
    """Encode token ids. Attention is causal, so padding after the text does not affect the pooled output."""

    def __init__(self, config: ClipTextConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        self.token_embedding = nnx.Embed(c.vocab_size, c.hidden_size, dtype=c.dtype, rngs=rngs)
        self.position_embedding = nnx.Embed(c.max_position_embeddings, c.hidden_size, dtype=c.dtype, rngs=rngs)
        self.layers = scan.stack(lambda rngs: clip_layer(c, True, rngs), c.num_hidden_layers, rngs)
        self.final_layer_norm = layer_norm(c.hidden_size, c.layer_norm_eps, rngs)
        self.text_projection = _projection(c, rngs) if c.projection_dim else None

    def __call__(self, input_ids: Int[Array, "b l"]) -> ClipTextOutput:
        """Encode texts of at most `max_position_embeddings` tokens.

        An id outside the vocabulary makes the following tokens NaN.

        Raises:
          ValueError: there are too many tokens.
        """
        length, limit = input_ids.shape[1], self.config.max_position_embeddings
        if length > limit:
            raise ValueError(f"the text has {length} tokens; the transformer has {limit} positions")
        x = self.token_embedding(input_ids) + self.position_embedding(jnp.arange(length))[None]
        x = scan.scan(self.layers, lambda layer, x: layer(x), x, remat=self.config.remat)
        x = self.final_layer_norm(x).astype(x.dtype)
        end = end_of_text(input_ids, self.config.eos_token_id)
        pooled = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        return ClipTextOutput(x, pooled, None if self.text_projection is None else self.text_projection(pooled))


class ClipVision(nnx.Module):
    """Encode images of `image_size` squared, normalised with CLIP's mean and standard deviation."""

    def __init__(self, config: ClipVisionConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        patch = (c.patch_size, c.patch_size)
        self.class_embedding = nnx.Param(c.hidden_size**-0.5 * jax.random.normal(rngs.params(), (c.hidden_size,)))
        self.patch_embedding = nnx.Conv(
            3, c.hidden_size, patch, patch, padding="VALID", use_bias=False, dtype=c.dtype, rngs=rngs
        )
        self.position_embedding = nnx.Embed(c.num_tokens, c.hidden_size, rngs=rngs)
        self.pre_layrnorm = layer_norm(c.hidden_size, c.layer_norm_eps, rngs)
        self.layers = scan.stack(lambda rngs: clip_layer(c, False, rngs), c.num_hidden_layers, rngs)
        self.post_layernorm = layer_norm(c.hidden_size, c.layer_norm_eps, rngs)
        self.visual_projection = _projection(c, rngs) if c.projection_dim else None

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> ClipVisionOutput:
        """Encode images.

        Raises:
          ValueError: the images have another size than `config.image_size`.
        """
        size = self.config.image_size
        if pixels.shape[1:3] != (size, size):
            raise ValueError(f"images must be {size} x {size}, not {pixels.shape[1]} x {pixels.shape[2]}")
        x = self.patch_embedding(pixels.astype(self.config.dtype))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        first = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([first, x], axis=1)
        x = x + self.position_embedding.embedding[...].astype(x.dtype)[None]
        x = self.pre_layrnorm(x).astype(x.dtype)
        x = scan.scan(self.layers, lambda layer, x: layer(x), x, remat=self.config.remat)
        pooled = self.post_layernorm(x[:, 0]).astype(x.dtype)
        return ClipVisionOutput(x, pooled, None if self.visual_projection is None else self.visual_projection(pooled))


class Clip(nnx.Module):
    """Both towers and the learned logarithm of the logit scale."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.text_model = ClipText(config.text, rngs=rngs)
        self.vision_model = ClipVision(config.vision, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.log(jnp.asarray(1 / 0.07, jnp.float32)))

    def embed_images(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Return unit-length embeddings; dot products with image or text embeddings are cosines."""
        return unit(self.vision_model(pixels).image_embeds)

    def embed_texts(self, input_ids: Int[Array, "b l"]) -> Float[Array, "b d"]:
        """Return unit-length embeddings; dot products with image or text embeddings are cosines."""
        return unit(self.text_model(input_ids).text_embeds)
