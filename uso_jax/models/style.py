# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The hierarchical style projector: SigLIP features of three depths -> style tokens in the text stream.

Source: bytedance/USO, uso/flux/modules/layers.py, `SigLIPMultiFeatProjModel`; paper Eq. (2).
Shapes: b batch, n style images, s vision tokens, c vision width, k style tokens a level, d transformer width.
"""

from dataclasses import dataclass

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

LEVELS = ("high", "mid", "low")


@dataclass(frozen=True)
class ProjectorConfig:
    """Sizes of the projector; the defaults fit google/siglip-so400m-patch14-384."""

    siglip_tokens: int = 729
    style_tokens: int = 64  # a level, so 192 an image
    siglip_dim: int = 1152
    layers: tuple[int, int, int] = (-2, -11, -20)  # hidden states read for high, mid, low

    def __post_init__(self):
        if len(self.layers) != len(LEVELS):
            raise ValueError(f"projector.layers needs one SigLIP layer for each of {LEVELS}, not {self.layers}")

    @property
    def tokens_per_image(self) -> int:
        return len(LEVELS) * self.style_tokens


class HierarchicalProjector(nnx.Module):
    """Map each level by its own weights: mix tokens, normalise, widen."""

    def __init__(self, config: ProjectorConfig, hidden_size: int, *, dtype=jnp.bfloat16, rngs: nnx.Rngs):
        c = config
        self.dtype = dtype
        for level in LEVELS:
            setattr(
                self, f"{level}_embedding_linear", nnx.Linear(c.siglip_tokens, c.style_tokens, dtype=dtype, rngs=rngs)
            )
            norm = nnx.LayerNorm(c.siglip_dim, epsilon=1e-5, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)
            setattr(self, f"{level}_layer_norm", norm)
            setattr(self, f"{level}_projection", nnx.Linear(c.siglip_dim, hidden_size, dtype=dtype, rngs=rngs))

    def __call__(self, features: Float[Array, "b n 3 s c"]) -> Float[Array, "b tokens d"]:
        """Project the features of `n` style images; their tokens follow each other, high level first."""
        levels = []
        for i, level in enumerate(LEVELS):
            x = features[:, :, i].swapaxes(-1, -2)
            x = jax.nn.silu(getattr(self, f"{level}_embedding_linear")(x)).swapaxes(-1, -2)
            x = getattr(self, f"{level}_layer_norm")(x).astype(self.dtype)
            levels.append(getattr(self, f"{level}_projection")(x))
        return einops.rearrange(jnp.stack(levels, axis=2), "b n level k d -> b (n level k) d")
