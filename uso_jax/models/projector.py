# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Style projectors: SigLIP features from three depths -> style tokens in the text stream.

USO uses the hierarchical projector. The paper compares it with the two others (Table 4), which read the deepest level.
Sources: bytedance/USO, uso/flux/modules/layers.py, `SigLIPMultiFeatProjModel`, and paper Eq. (2). The resampler follows
IP-Adapter and Flamingo (arXiv 2308.06721, 2204.14198), the MLP FLUX.1 Redux, both with depth 1.
Shapes: b batch, n style images, s vision tokens, c vision width, k style tokens per level, d transformer width.
"""

from dataclasses import dataclass

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from uso_jax.models.layers.attention import MultiHeadAttention
from uso_jax.models.layers.encoder_block import layer_norm
from uso_jax.models.layers.mlp import MLP

LEVELS = ("high", "mid", "low")
_EPSILON = 1e-5  # of layer norms


@dataclass(frozen=True)
class ProjectorConfig:
    """Sizes of the projector; the defaults match google/siglip-so400m-patch14-384."""

    siglip_tokens: int = 729  # tokens of a style image from SigLIP
    style_tokens: int = 64  # per level, so 192 per image
    siglip_dim: int = 1152  # width of SigLIP's tokens
    layers: tuple[int, int, int] = (-2, -11, -20)  # hidden states for levels high, mid, low
    kind: str = "hierarchical"  # one of PROJECTORS
    depth: int = 2  # blocks of a "level_resampler"

    def __post_init__(self):
        if len(self.layers) != len(LEVELS):
            raise ValueError(f"projector.layers must have one SigLIP layer for each of {LEVELS}, not {self.layers}")
        if self.kind not in PROJECTORS:
            raise ValueError(f"unknown projector.kind {self.kind!r}; known kinds: {', '.join(PROJECTORS)}")

    @property
    def tokens_per_image(self) -> int:
        return self.siglip_tokens if self.kind == "mlp" else len(LEVELS) * self.style_tokens


class HierarchicalProjector(nnx.Module):
    """Project each level with separate weights: mix tokens, normalise, widen."""

    def __init__(self, config: ProjectorConfig, hidden_size: int, *, dtype=jnp.bfloat16, rngs: nnx.Rngs):
        c = config
        self.dtype = dtype
        self.high_embedding_linear = nnx.Linear(c.siglip_tokens, c.style_tokens, dtype=dtype, rngs=rngs)
        self.high_layer_norm = layer_norm(c.siglip_dim, _EPSILON, rngs)
        self.high_projection = nnx.Linear(c.siglip_dim, hidden_size, dtype=dtype, rngs=rngs)
        self.mid_embedding_linear = nnx.Linear(c.siglip_tokens, c.style_tokens, dtype=dtype, rngs=rngs)
        self.mid_layer_norm = layer_norm(c.siglip_dim, _EPSILON, rngs)
        self.mid_projection = nnx.Linear(c.siglip_dim, hidden_size, dtype=dtype, rngs=rngs)
        self.low_embedding_linear = nnx.Linear(c.siglip_tokens, c.style_tokens, dtype=dtype, rngs=rngs)
        self.low_layer_norm = layer_norm(c.siglip_dim, _EPSILON, rngs)
        self.low_projection = nnx.Linear(c.siglip_dim, hidden_size, dtype=dtype, rngs=rngs)

    def __call__(self, features: Float[Array, "b n 3 s c"]) -> Float[Array, "b tokens d"]:
        """Project the features of `n` style images; tokens are in order of image, then level (high, mid, low)."""
        high, mid, low = jnp.moveaxis(features, 2, 0)
        levels = [
            self._project(high, self.high_embedding_linear, self.high_layer_norm, self.high_projection),
            self._project(mid, self.mid_embedding_linear, self.mid_layer_norm, self.mid_projection),
            self._project(low, self.low_embedding_linear, self.low_layer_norm, self.low_projection),
        ]
        return einops.rearrange(jnp.stack(levels, axis=2), "b n level k d -> b (n level k) d")

    def _project(
        self, x: Float[Array, "b n s c"], mix: nnx.Linear, norm: nnx.LayerNorm, widen: nnx.Linear
    ) -> Float[Array, "b n k d"]:
        x = jax.nn.silu(mix(x.swapaxes(-1, -2))).swapaxes(-1, -2)
        return widen(norm(x).astype(self.dtype))


class Resampler(nnx.Module):
    """One cross-attention of learned queries to the deepest level; as many tokens as the hierarchical projector."""

    def __init__(self, config: ProjectorConfig, hidden_size: int, *, dtype=jnp.bfloat16, rngs: nnx.Rngs):
        c = config
        norm = lambda: layer_norm(c.siglip_dim, _EPSILON, rngs)
        scale = c.siglip_dim**-0.5
        self.dtype = dtype
        self.latents = nnx.Param(scale * jax.random.normal(rngs.params(), (c.tokens_per_image, c.siglip_dim)))
        self.norm_features, self.norm_latents, self.norm_mlp = norm(), norm(), norm()
        self.attn = MultiHeadAttention(c.siglip_dim, max(1, c.siglip_dim // 64), dtype=dtype, rngs=rngs)
        self.mlp = MLP(c.siglip_dim, 4 * c.siglip_dim, c.siglip_dim, jax.nn.gelu, dtype=dtype, rngs=rngs)
        self.proj_out = nnx.Linear(c.siglip_dim, hidden_size, dtype=dtype, rngs=rngs)
        self.norm_out = layer_norm(hidden_size, _EPSILON, rngs)

    def __call__(self, features: Float[Array, "b n 3 s c"]) -> Float[Array, "b tokens d"]:
        """Project the features of `n` style images; tokens are in order of image."""
        b, n = features.shape[:2]
        x = self.norm_features(features[:, :, 0].reshape(b * n, *features.shape[3:]))
        latents = jnp.broadcast_to(self.latents[...], (b * n, *self.latents.shape))
        queries = self.norm_latents(latents)
        keys = jnp.concatenate([x, queries], axis=1).astype(self.dtype)
        latents = latents + self.attn(queries.astype(self.dtype), keys)
        latents = latents + self.mlp(self.norm_mlp(latents).astype(self.dtype))
        return self.norm_out(self.proj_out(latents.astype(self.dtype))).reshape(b, -1, self.proj_out.out_features)


class TokenMLP(nnx.Module):
    """A per-token MLP on the deepest level; one style token per vision token."""

    def __init__(self, config: ProjectorConfig, hidden_size: int, *, dtype=jnp.bfloat16, rngs: nnx.Rngs):
        self.mlp = MLP(config.siglip_dim, 3 * hidden_size, hidden_size, jax.nn.silu, dtype=dtype, rngs=rngs)

    def __call__(self, features: Float[Array, "b n 3 s c"]) -> Float[Array, "b tokens d"]:
        """Project the features of `n` style images; tokens are in order of image."""
        return einops.rearrange(self.mlp(features[:, :, 0]), "b n s d -> b (n s) d")


class LevelResampler(nnx.Module):
    """Blocks of cross-attention of learned queries to all levels; as many tokens as the hierarchical projector."""

    def __init__(self, config: ProjectorConfig, hidden_size: int, *, dtype=jnp.bfloat16, rngs: nnx.Rngs):
        c = config
        self.dtype = dtype
        scale = c.siglip_dim**-0.5
        self.latents = nnx.Param(scale * jax.random.normal(rngs.params(), (c.tokens_per_image, c.siglip_dim)))
        self.level_norms = nnx.List([layer_norm(c.siglip_dim, _EPSILON, rngs) for _ in LEVELS])
        self.level_in = nnx.List([nnx.Linear(c.siglip_dim, c.siglip_dim, dtype=dtype, rngs=rngs) for _ in LEVELS])
        self.blocks = nnx.List([_CrossBlock(c.siglip_dim, dtype=dtype, rngs=rngs) for _ in range(c.depth)])
        self.norm_out = layer_norm(c.siglip_dim, _EPSILON, rngs)
        self.proj_out = nnx.Linear(c.siglip_dim, hidden_size, dtype=dtype, rngs=rngs)

    def __call__(self, features: Float[Array, "b n 3 s c"]) -> Float[Array, "b tokens d"]:
        """Project the features of `n` style images; tokens are in order of image."""
        b, n = features.shape[:2]
        levels = jnp.moveaxis(features, 2, 0).reshape(len(LEVELS), b * n, *features.shape[3:])
        read = [
            widen(norm(x).astype(self.dtype))
            for x, norm, widen in zip(levels, self.level_norms, self.level_in, strict=True)
        ]
        keys = jnp.concatenate(read, axis=1)
        x = jnp.broadcast_to(self.latents[...].astype(self.dtype), (b * n, *self.latents.shape))
        for block in self.blocks:
            x = block(x, keys)
        return self.proj_out(self.norm_out(x).astype(self.dtype)).reshape(b, -1, self.proj_out.out_features)


class _CrossBlock(nnx.Module):
    """Attention of queries to themselves and to keys, then an MLP, each added to its input."""

    def __init__(self, width: int, *, dtype, rngs: nnx.Rngs):
        self.norm1, self.norm2 = layer_norm(width, _EPSILON, rngs), layer_norm(width, _EPSILON, rngs)
        self.attn = MultiHeadAttention(width, max(1, width // 32), dtype=dtype, rngs=rngs)
        self.mlp = MLP(width, 4 * width, width, jax.nn.gelu, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b k c"], keys: Float[Array, "b s c"]) -> Float[Array, "b k c"]:
        queries = self.norm1(x).astype(keys.dtype)
        x = x + self.attn(queries, jnp.concatenate([keys, queries], axis=1))
        return x + self.mlp(self.norm2(x).astype(keys.dtype))


PROJECTORS = {
    "hierarchical": HierarchicalProjector,
    "resampler": Resampler,
    "mlp": TokenMLP,
    "level_resampler": LevelResampler,
}
