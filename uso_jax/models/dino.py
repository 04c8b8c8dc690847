# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""DINO and DINOv2: self-supervised vision transformers whose class token is used by subject metrics.

Sources: https://github.com/facebookresearch/dino and dinov2, vision_transformer.py; transformers, models/vit and
models/dinov2; arXiv 2104.14294, 2304.07193. Parameter names match the originals, with `attn.qkv` split into three.
Shapes: b batch, h w pixels, s tokens (the class token first), c hidden_size.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from uso_jax.models.layers import scan
from uso_jax.models.layers.attention import MultiHeadAttention, check_heads
from uso_jax.models.layers.encoder_block import layer_norm
from uso_jax.models.layers.mlp import MLP


@dataclass(frozen=True)
class DinoConfig:
    """Sizes and numerics; the defaults are DINO's dino_vits16."""

    hidden_size: int = 384  # width of the residual stream
    intermediate_size: int = 1536  # width of the MLP
    num_hidden_layers: int = 12  # blocks
    num_attention_heads: int = 6  # attention heads
    image_size: int = 224  # resolution of the position embedding, which is interpolated for other sizes
    patch_size: int = 16  # pixels per side of a patch
    layer_norm_eps: float = 1e-6  # added to the variance in norms
    layer_scale: bool = False  # DINOv2: learned scales of residual branches, and a mask token
    dtype: str = "float32"  # of matrix products
    remat: str = "full"  # a key of scan.REMAT_POLICIES

    def __post_init__(self):
        check_heads(self.hidden_size, self.num_attention_heads)
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is smaller than one patch of {self.patch_size}")
        scan.check_remat(self.remat)

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    @classmethod
    def tiny(cls, **changes) -> "DinoConfig":
        """Return the config of a transformer for tests."""
        sizes = dict(
            hidden_size=24,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=40,
            patch_size=8,
            remat="none",
        )
        return cls(**(sizes | changes))


def _dinov2(hidden_size: int, num_hidden_layers: int) -> DinoConfig:
    return DinoConfig(
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=hidden_size // 64,
        image_size=518,
        patch_size=14,
        layer_scale=True,
    )


DINO: Mapping[str, DinoConfig] = {
    "dino_vits16": DinoConfig(),
    "dinov2_vits14": _dinov2(384, 12),
    "dinov2_vitb14": _dinov2(768, 12),
    "dinov2_vitl14": _dinov2(1024, 24),
}
"""The released models, by their torch.hub names."""


@jax.tree_util.register_dataclass
@dataclass
class DinoOutput:
    """Tokens after the final norm, and the class token, which is the first of them."""

    last_hidden_state: Float[Array, "b s c"]
    pooler_output: Float[Array, "b c"]


def gelu(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Apply the exact GELU."""
    return jax.nn.gelu(x, approximate=False)


def cubic_weights(old: int, new: int) -> np.ndarray:
    """Return torch's bicubic interpolation along one axis as a matrix, [new, old].

    Unlike PIL and JAX, torch uses a = -0.75, replicates the border and does not antialias.
    """
    a = -0.75
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        index = np.floor(centre).astype(int) + tap
        x = np.abs(centre - index)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = a * (((x - 5) * x + 8) * x - 4)
        np.add.at(weights, (np.arange(new), np.clip(index, 0, old - 1)), np.where(x <= 1, near, far))
    return weights


class DinoBlock(nnx.Module):
    """A pre-norm transformer layer; DINOv2 scales its residual branches."""

    def __init__(self, config: DinoConfig, *, rngs: nnx.Rngs):
        c = config
        self.norm1 = layer_norm(c.hidden_size, c.layer_norm_eps, rngs)
        self.attn = MultiHeadAttention(c.hidden_size, c.num_attention_heads, dtype=c.dtype, rngs=rngs)
        self.ls1 = nnx.Param(jnp.ones((c.hidden_size,))) if c.layer_scale else None
        self.norm2 = layer_norm(c.hidden_size, c.layer_norm_eps, rngs)
        self.mlp = MLP(c.hidden_size, c.intermediate_size, c.hidden_size, gelu, dtype=c.dtype, rngs=rngs)
        self.ls2 = nnx.Param(jnp.ones((c.hidden_size,))) if c.layer_scale else None

    def __call__(self, x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
        y = self.norm1(x).astype(x.dtype)
        x = x + self._scaled(self.attn(y, y), self.ls1)
        return x + self._scaled(self.mlp(self.norm2(x).astype(x.dtype)), self.ls2)

    def _scaled(self, branch: Float[Array, "b s c"], scale: nnx.Param | None) -> Float[Array, "b s c"]:
        return branch if scale is None else branch * scale[...].astype(branch.dtype)[None, None]


class Dino(nnx.Module):
    """Encode images of any size, normalised with ImageNet's mean and standard deviation."""

    def __init__(self, config: DinoConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        patch = (c.patch_size, c.patch_size)
        self.patch_embed = nnx.Conv(3, c.hidden_size, patch, patch, padding="VALID", dtype=c.dtype, rngs=rngs)
        self.cls_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, 1, c.hidden_size)))
        self.pos_embed = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, c.grid**2 + 1, c.hidden_size)))
        # Replaces masked patches during DINOv2's training; kept so that checkpoints convert without loss.
        self.mask_token = nnx.Param(jnp.zeros((1, c.hidden_size))) if c.layer_scale else None
        self.blocks = scan.stack(lambda rngs: DinoBlock(c, rngs=rngs), c.num_hidden_layers, rngs)
        self.norm = layer_norm(c.hidden_size, c.layer_norm_eps, rngs)

    def position_embedding(self, rows: int, columns: int) -> Float[Array, "1 s c"]:
        """Return the position embedding for a grid of patches in float32, interpolated as in transformers.

        The original DINOv2 code scales by (new + 0.1) / old instead of new / old, a shift of much less than a patch.
        """
        embedding, grid = self.pos_embed[...].astype(jnp.float32), self.config.grid
        if (rows, columns) == (grid, grid):
            return embedding
        patches = embedding[:, 1:].reshape(grid, grid, -1)
        vertical, horizontal = (jnp.asarray(cubic_weights(grid, new), jnp.float32) for new in (rows, columns))
        patches = jnp.einsum("yi,xj,ijc->yxc", vertical, horizontal, patches, precision="highest")
        return jnp.concatenate([embedding[:, :1], patches.reshape(1, rows * columns, -1)], axis=1)

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> DinoOutput:
        """Encode images. Incomplete patches at the right and bottom edges are ignored."""
        x = self.patch_embed(pixels.astype(self.config.dtype))
        b, rows, columns, c = x.shape
        first = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (b, 1, c))
        x = jnp.concatenate([first, x.reshape(b, rows * columns, c)], axis=1)
        x = x + self.position_embedding(rows, columns).astype(x.dtype)
        x = scan.scan(self.blocks, lambda block, x: block(x), x, remat=self.config.remat)
        x = self.norm(x).astype(x.dtype)
        return DinoOutput(x, x[:, 0])
