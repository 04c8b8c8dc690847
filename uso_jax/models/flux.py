# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""FLUX.1's rectified-flow transformer with USO's conditioning and adapters.

Sources: black-forest-labs/flux (model.py, modules/layers.py, math.py) and bytedance/USO (uso/flux/). Parameter names
match them, with two exceptions: `img_mlp.0` and `.2` are `img_mlp/in_layer` and `/out_layer`, and a single block's
`linear1` is split into `linear1_qkv` and `linear1_mlp`, because USO's adapter covers only the qkv part.

Text tokens have the ids zero. Shapes: b batch, d hidden_size.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from uso_jax.models.joint_transformer import JointTransformer
from uso_jax.models.layers import scan
from uso_jax.models.layers.embeddings import timestep_embedding
from uso_jax.models.layers.joint_blocks import DoubleStreamBlock, FinalLayer, JointConfig, SingleStreamBlock
from uso_jax.models.layers.linear import Linear
from uso_jax.models.layers.lora import LoraRules
from uso_jax.models.layers.mlp import MLP
from uso_jax.models.projector import PROJECTORS, ProjectorConfig


@dataclass(frozen=True)
class FluxConfig(JointConfig):
    """Sizes and numerics of the transformer; the defaults are FLUX.1-dev without USO's additions."""

    in_channels: int = 64  # channels of an image token
    vec_in_dim: int = 768  # width of the pooled text vector
    context_in_dim: int = 4096  # width of a text token
    hidden_size: int = 3072  # width of the residual stream
    mlp_ratio: float = 4.0  # width of the MLP over hidden_size
    num_heads: int = 24  # attention heads
    depth: int = 19  # double-stream blocks
    depth_single_blocks: int = 38  # single-stream blocks
    axes_dim: tuple[int, ...] = (16, 56, 56)  # rotary channels of each position axis; they add up to the head width
    theta: int = 10_000  # base of the rotary frequencies
    qkv_bias: bool = True  # biases of the query, key and value layers
    guidance_embed: bool = True  # the distilled guidance scale is an input
    lora_rank: int = 0  # 0: no adapters; the released USO uses 128
    lora_scale: float = 1.0  # factor of the adapters' output
    lora_rules: LoraRules = ()
    """(regex over paths of adapters, rank, factor), for adapters that differ from lora_rank and lora_scale."""
    projector: ProjectorConfig | None = None  # None: no style images
    dtype: str = "bfloat16"  # of matrix products; norms, softmax, rotations and sinusoids use float32
    remat: str = "full"  # a key of scan.REMAT_POLICIES
    attention: str = "auto"  # a value of attention.dispatch.Implementation

    @classmethod
    def tiny(cls, **changes) -> "FluxConfig":
        """Return the config of a float32 model for tests, which runs in milliseconds and has all parts."""
        sizes = dict(
            in_channels=16,
            vec_in_dim=12,
            context_in_dim=20,
            hidden_size=32,
            num_heads=2,
            depth=2,
            depth_single_blocks=2,
            axes_dim=(4, 6, 6),
            lora_rank=4,
            projector=ProjectorConfig(siglip_tokens=4, style_tokens=2, siglip_dim=24, layers=(-2, -3, -4)),
            dtype="float32",
            remat="none",
        )
        return cls(**(sizes | changes))


PRESETS = {
    "flux-dev": FluxConfig(),
    "flux-krea-dev": FluxConfig(),  # same sizes, other weights
    "flux-schnell": FluxConfig(guidance_embed=False),
}

SAMPLING = {  # how released weights are sampled that differ from dev (black-forest-labs/flux, cli.py and util.py)
    "flux-schnell": {"num_steps": 4, "shift": "none", "t5_length": 256},  # distilled, without guidance
}


class Flux(JointTransformer):
    """Predict the velocity of packed latents from time, text, and any number of style and content images."""

    def __init__(self, config: FluxConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        d, dtype = c.hidden_size, c.dtype
        self.img_in = Linear(c.in_channels, d, dtype=dtype, rngs=rngs)
        self.time_in = MLP(256, d, d, jax.nn.silu, dtype=dtype, rngs=rngs)
        self.vector_in = MLP(c.vec_in_dim, d, d, jax.nn.silu, dtype=dtype, rngs=rngs)
        if c.guidance_embed:
            # Initially silent, so that adding it to a model trained without guidance changes nothing.
            self.guidance_in = MLP(256, d, d, jax.nn.silu, silent=True, dtype=dtype, rngs=rngs)
        self.txt_in = Linear(c.context_in_dim, d, dtype=dtype, rngs=rngs)
        self.double_blocks = scan.stack(lambda rngs: DoubleStreamBlock(c, rngs=rngs), c.depth, rngs)
        self.single_blocks = scan.stack(lambda rngs: SingleStreamBlock(c, rngs=rngs), c.depth_single_blocks, rngs)
        self.final_layer = FinalLayer(c, rngs=rngs)
        if c.projector is not None:
            self.feature_embedder = PROJECTORS[c.projector.kind](c.projector, d, dtype=dtype, rngs=rngs)

    def vector(
        self, timesteps: Float[Array, " b"], y: Float[Array, "b vec"], guidance: Float[Array, " b"] | None
    ) -> Float[Array, "b d"]:
        dtype = jnp.dtype(self.config.dtype)
        vec = self.time_in(timestep_embedding(timesteps).astype(dtype)) + self.vector_in(y.astype(dtype))
        if guidance is not None:
            vec = vec + self.guidance_in(timestep_embedding(guidance).astype(dtype))
        return vec
