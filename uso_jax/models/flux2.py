# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""FLUX.2's rectified-flow transformer ([klein] and [dev]) with USO's conditioning and adapters.

Source: black-forest-labs/flux2, model.py. Parameter names match it, with FLUX.1's two exceptions (uso_jax.models.flux).
Compared with FLUX.1: no biases, no pooled text vector, SwiGLU, one modulation for all blocks of a kind, and position
ids with four axes (t, h, w, l): text tokens are numbered along l, references lie apart along t (`uso_jax.flow`).

Shapes: b batch, t text tokens, d hidden_size.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from uso_jax.models.joint_transformer import JointTransformer
from uso_jax.models.layers import scan
from uso_jax.models.layers.embeddings import timestep_embedding
from uso_jax.models.layers.joint_blocks import (
    Condition,
    DoubleStreamBlock,
    FinalLayer,
    JointConfig,
    Modulation,
    SingleStreamBlock,
)
from uso_jax.models.layers.linear import Linear
from uso_jax.models.layers.lora import LoraRules
from uso_jax.models.layers.mlp import MLP
from uso_jax.models.projector import PROJECTORS, ProjectorConfig


@dataclass(frozen=True)
class Flux2Config(JointConfig):
    """Sizes and numerics of the transformer; the defaults are FLUX.2-klein-4B without USO's additions."""

    vec_in_dim: ClassVar[int] = 0  # there is no pooled text vector
    qkv_bias: ClassVar[bool] = False
    use_bias: ClassVar[bool] = False
    gated_mlp: ClassVar[bool] = True
    shared_modulation: ClassVar[bool] = True

    in_channels: int = 128  # channels of an image token
    context_in_dim: int = 7680  # width of a text token
    hidden_size: int = 3072  # width of the residual stream
    mlp_ratio: float = 3.0  # width of the gated MLP over hidden_size
    num_heads: int = 24  # attention heads
    depth: int = 5  # double-stream blocks
    depth_single_blocks: int = 20  # single-stream blocks
    axes_dim: tuple[int, ...] = (32, 32, 32, 32)  # rotary channels of each position axis; they add up to the head width
    theta: int = 2000  # base of the rotary frequencies
    guidance_embed: bool = False  # the distilled guidance scale is an input
    lora_rank: int = 0  # 0: no adapters
    lora_scale: float = 1.0  # factor of the adapters' output
    lora_rules: LoraRules = ()
    """(regex over paths of adapters, rank, factor), for adapters that differ from lora_rank and lora_scale."""
    projector: ProjectorConfig | None = None  # None: no style tokens
    dtype: str = "bfloat16"  # of matrix products; norms, softmax, rotations and sinusoids use float32
    remat: str = "full"  # a key of scan.REMAT_POLICIES
    attention: str = "auto"  # a value of attention.dispatch.Implementation

    @classmethod
    def tiny(cls, **changes) -> "Flux2Config":
        """Return the config of a float32 model for tests, which runs in milliseconds and has all parts."""
        sizes = dict(
            in_channels=16,
            context_in_dim=24,
            hidden_size=32,
            num_heads=2,
            depth=2,
            depth_single_blocks=2,
            axes_dim=(4, 4, 4, 4),
            lora_rank=4,
            projector=ProjectorConfig(siglip_tokens=4, style_tokens=2, siglip_dim=24, layers=(-2, -3, -4)),
            dtype="float32",
            remat="none",
        )
        return cls(**(sizes | changes))


PRESETS = {
    "klein-4b": Flux2Config(),  # distilled to four steps
    "klein-base-4b": Flux2Config(),  # same sizes, other weights
    "klein-9b": Flux2Config(hidden_size=4096, num_heads=32, context_in_dim=12288, depth=8, depth_single_blocks=24),
    "dev": Flux2Config(
        hidden_size=6144, num_heads=48, context_in_dim=15360, depth=8, depth_single_blocks=48, guidance_embed=True
    ),
}

SAMPLING = {  # how the released weights are sampled
    "klein-4b": {"num_steps": 4, "guidance": 1.0, "shift": "flux"},  # distilled: no classifier-free guidance
    "klein-base-4b": {"num_steps": 50, "guidance": 4.0, "shift": "flux"},
    "klein-9b": {"num_steps": 4, "guidance": 1.0, "shift": "flux"},
    "dev": {"num_steps": 50, "guidance": 4.0, "shift": "flux"},
}


class Flux2(JointTransformer):
    """Predict the velocity of packed latents from time, text, and any number of references and style images."""

    def __init__(self, config: Flux2Config, *, rngs: nnx.Rngs):
        c = self.config = config
        d, options = c.hidden_size, dict(use_bias=False, dtype=c.dtype, rngs=rngs)
        self.img_in = Linear(c.in_channels, d, **options)
        self.time_in = MLP(256, d, d, jax.nn.silu, **options)
        if c.guidance_embed:
            # Initially silent, so that adding it to a model trained without guidance changes nothing.
            self.guidance_in = MLP(256, d, d, jax.nn.silu, silent=True, **options)
        self.txt_in = Linear(c.context_in_dim, d, **options)
        self.double_stream_modulation_img = Modulation(c, 2, rngs=rngs)
        self.double_stream_modulation_txt = Modulation(c, 2, rngs=rngs)
        self.single_stream_modulation = Modulation(c, 1, rngs=rngs)
        self.double_blocks = scan.stack(lambda rngs: DoubleStreamBlock(c, rngs=rngs), c.depth, rngs)
        self.single_blocks = scan.stack(lambda rngs: SingleStreamBlock(c, rngs=rngs), c.depth_single_blocks, rngs)
        self.final_layer = FinalLayer(c, rngs=rngs)
        if c.projector is not None:
            self.feature_embedder = PROJECTORS[c.projector.kind](c.projector, d, dtype=c.dtype, rngs=rngs)

    def vector(
        self, timesteps: Float[Array, " b"], y: None, guidance: Float[Array, " b"] | None
    ) -> Float[Array, "b d"]:
        dtype = jnp.dtype(self.config.dtype)
        vec = self.time_in(timestep_embedding(timesteps).astype(dtype))
        if guidance is not None:
            vec = vec + self.guidance_in(timestep_embedding(guidance).astype(dtype))
        return vec

    def conditions(self, vec: Float[Array, "b d"]) -> tuple[Condition, Condition]:
        double = (self.double_stream_modulation_img(vec), self.double_stream_modulation_txt(vec))
        return double, (self.single_stream_modulation(vec),)

    def text_ids(self, length: int) -> Float[Array, "1 {length} 4"]:
        return jnp.zeros((1, length, 4)).at[:, :, 3].set(jnp.arange(length))
