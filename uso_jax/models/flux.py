# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""FLUX.1's rectified-flow transformer with USO's conditioning and adapters.

Sources: black-forest-labs/flux (model.py, modules/layers.py, math.py) and bytedance/USO (uso/flux/). Parameter names
match them, with two exceptions: `img_mlp.0` and `.2` are `img_mlp/in_layer` and `/out_layer`, and a single block's
`linear1` is split into `linear1_qkv` and `linear1_mlp`, because USO's adapter covers only the qkv part.

Sequence: [style | txt | img | ref_img]. Style tokens have the ids of text (zeros); references follow the target.
Shapes: b batch, l tokens, i t r s image, text, reference and style tokens, d hidden_size, n heads, k head width,
a rotary axes, c latent channels of a token.
"""

import dataclasses
import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from uso_jax.models.attention.dispatch import attention
from uso_jax.models.layers import scan
from uso_jax.models.layers.embeddings import rotary_embedding, rotate, timestep_embedding
from uso_jax.models.layers.lora import DoubleProcessor, SingleProcessor
from uso_jax.models.layers.mlp import MLP, gelu_tanh
from uso_jax.models.layers.token_groups import TokenGroup, join_groups
from uso_jax.models.projector import PROJECTORS, ProjectorConfig
from uso_jax.parallel.constraints import by_heads, by_tokens, sequence_shards


@dataclass(frozen=True)
class FluxConfig:
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
    projector: ProjectorConfig | None = None  # None: no style images
    dtype: str = "bfloat16"  # of matrix products; norms, softmax, rotations and sinusoids use float32
    remat: str = "full"  # a key of scan.REMAT_POLICIES
    attention: str = "auto"  # a value of attention.dispatch.Implementation

    def __post_init__(self):
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by {self.num_heads} heads")
        if sum(self.axes_dim) != self.head_dim:
            raise ValueError(f"axes_dim {self.axes_dim} must add up to the head width, {self.head_dim}")
        if any(dim % 2 for dim in self.axes_dim):
            raise ValueError(f"every entry of axes_dim {self.axes_dim} must be even: rotations act on pairs")
        scan.check_remat(self.remat)
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank must be 0 (no adapters) or positive, not {self.lora_rank}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)

    def with_uso(self, lora_rank: int = 128, projector: ProjectorConfig | None = None) -> "FluxConfig":
        """Return the config with USO's adapters and style projector."""
        return dataclasses.replace(self, lora_rank=lora_rank, projector=projector or ProjectorConfig())

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


# ---------------------------------------------------------------------------------------------------- functions


def layer_norm(x: Float[Array, "b l d"], epsilon: float = 1e-6) -> Float[Array, "b l d"]:
    """Normalise channels in float32, without learned parameters."""
    x = x.astype(jnp.float32)
    x = x - x.mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + epsilon)


@functools.partial(jax.checkpoint, prevent_cse=False)  # saves only x for the backward pass, like gelu_tanh
def modulate(x: Float[Array, "b l d"], mod: "ModulationOut") -> Float[Array, "b l d"]:
    """Normalise, then scale and shift; the result has the dtype of `x`."""
    return ((1 + mod.scale) * layer_norm(x) + mod.shift).astype(x.dtype)


# ---------------------------------------------------------------------------------------------------- modules


class QKNorm(nnx.Module):
    """RMS normalisation of queries and keys per head, in float32."""

    def __init__(self, head_dim: int, *, rngs: nnx.Rngs):
        self.query_norm = nnx.RMSNorm(head_dim, epsilon=1e-6, dtype=jnp.float32, rngs=rngs)
        self.key_norm = nnx.RMSNorm(head_dim, epsilon=1e-6, dtype=jnp.float32, rngs=rngs)

    def __call__(
        self, q: Float[Array, "b l n k"], k: Float[Array, "b l n k"]
    ) -> tuple[Float[Array, "b l n k"], Float[Array, "b l n k"]]:
        return self.query_norm(q).astype(q.dtype), self.key_norm(k).astype(k.dtype)


class SelfAttention(nnx.Module):
    """The parameters of one stream's attention."""

    def __init__(self, config: FluxConfig, *, rngs: nnx.Rngs):
        d, dtype = config.hidden_size, config.dtype
        self.qkv = nnx.Linear(d, 3 * d, use_bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.norm = QKNorm(config.head_dim, rngs=rngs)
        self.proj = nnx.Linear(d, d, dtype=dtype, rngs=rngs)


@jax.tree_util.register_dataclass
@dataclass
class ModulationOut:
    """Shift, scale and gate of one sublayer, each [b, 1, d]."""

    shift: Array
    scale: Array
    gate: Array


class Modulation(nnx.Module):
    """Map the conditioning vector to shift, scale and gate of one or two sublayers."""

    def __init__(self, config: FluxConfig, num_sublayers: int, *, rngs: nnx.Rngs):
        d = config.hidden_size
        self.lin = nnx.Linear(d, 3 * num_sublayers * d, dtype=config.dtype, rngs=rngs)
        self.num_sublayers = num_sublayers

    def __call__(self, vec: Float[Array, "b d"]) -> list[ModulationOut]:
        parts = jnp.split(self.lin(jax.nn.silu(vec))[:, None], 3 * self.num_sublayers, axis=-1)
        return [ModulationOut(*parts[i : i + 3]) for i in range(0, len(parts), 3)]


def _split_heads(qkv: Float[Array, "b l d3"], num_heads: int) -> list[Float[Array, "b l n k"]]:
    b, length, _ = qkv.shape
    return list(jnp.moveaxis(qkv.reshape(b, length, 3, num_heads, -1), 2, 0))


def _merge_heads(x: Float[Array, "b l n k"]) -> Float[Array, "b l d"]:
    return checkpoint_name(x.reshape(*x.shape[:2], -1), "attention")


class DoubleStreamBlock(nnx.Module):
    """Separate image and text weights around one joint attention."""

    def __init__(self, config: FluxConfig, *, rngs: nnx.Rngs):
        d, dtype = config.hidden_size, config.dtype
        self.config = config
        self.img_mod = Modulation(config, 2, rngs=rngs)
        self.img_attn = SelfAttention(config, rngs=rngs)
        self.img_mlp = MLP(d, config.mlp_size, d, gelu_tanh, dtype=dtype, rngs=rngs)
        self.txt_mod = Modulation(config, 2, rngs=rngs)
        self.txt_attn = SelfAttention(config, rngs=rngs)
        self.txt_mlp = MLP(d, config.mlp_size, d, gelu_tanh, dtype=dtype, rngs=rngs)
        if config.lora_rank:
            self.processor = DoubleProcessor(d, config.lora_rank, dtype=dtype, rngs=rngs)

    def _adapt(self, name: str, x: Array) -> Array | float:
        return self.config.lora_scale * getattr(self.processor, name)(x) if self.config.lora_rank else 0.0

    def __call__(
        self,
        img: Float[Array, "b i d"],
        txt: Float[Array, "b t d"],
        vec: Float[Array, "b d"],
        pe: Float[Array, "_ i+t 1 pairs 2"],
        key_valid: Bool[Array, "b i+t"] | None = None,
        key_bias: Float[Array, "b i+t"] | None = None,
    ) -> tuple[Float[Array, "b i d"], Float[Array, "b t d"]]:
        img_mod1, img_mod2 = self.img_mod(vec)
        txt_mod1, txt_mod2 = self.txt_mod(vec)

        img_in, txt_in = modulate(img, img_mod1), modulate(txt, txt_mod1)
        img_q, img_k, img_v = _split_heads(
            self.img_attn.qkv(img_in) + self._adapt("qkv_lora1", img_in), self.config.num_heads
        )
        txt_q, txt_k, txt_v = _split_heads(
            self.txt_attn.qkv(txt_in) + self._adapt("qkv_lora2", txt_in), self.config.num_heads
        )
        img_q, img_k = self.img_attn.norm(img_q, img_k)
        txt_q, txt_k = self.txt_attn.norm(txt_q, txt_k)

        join = lambda txt, img: jnp.concatenate([by_heads(txt), by_heads(img)], axis=1)
        q, k, v = rotate(join(txt_q, img_q), pe), rotate(join(txt_k, img_k), pe), join(txt_v, img_v)
        out = attention(q, k, v, key_valid, key_bias, implementation=self.config.attention)
        txt_out, img_out = (_merge_heads(by_tokens(x)) for x in jnp.split(out, [txt.shape[1]], axis=1))

        # Without these constraints XLA (jaxlib 0.10.2) uses gates of the wrong samples on a mesh such as data=2,
        # fsdp=2, tensor=2 with one sample per device.
        place = scan.constrain_tokens
        img = img + img_mod1.gate * place(self.img_attn.proj(img_out) + self._adapt("proj_lora1", img_out))
        img = img + img_mod2.gate * place(self.img_mlp(modulate(img, img_mod2)))
        txt = txt + txt_mod1.gate * place(self.txt_attn.proj(txt_out) + self._adapt("proj_lora2", txt_out))
        txt = txt + txt_mod2.gate * place(self.txt_mlp(modulate(txt, txt_mod2)))
        return img, txt


class SingleStreamBlock(nnx.Module):
    """Parallel attention and MLP on the concatenated sequence."""

    def __init__(self, config: FluxConfig, *, rngs: nnx.Rngs):
        d, dtype = config.hidden_size, config.dtype
        self.config = config
        self.modulation = Modulation(config, 1, rngs=rngs)
        self.linear1_qkv = nnx.Linear(d, 3 * d, dtype=dtype, rngs=rngs)
        self.linear1_mlp = nnx.Linear(d, config.mlp_size, dtype=dtype, rngs=rngs)
        self.norm = QKNorm(config.head_dim, rngs=rngs)
        self.linear2 = nnx.Linear(d + config.mlp_size, d, dtype=dtype, rngs=rngs)
        if config.lora_rank:
            self.processor = SingleProcessor(d, config.mlp_size, config.lora_rank, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b l d"],
        vec: Float[Array, "b d"],
        pe: Float[Array, "_ l 1 pairs 2"],
        key_valid: Bool[Array, "b l"] | None = None,
        key_bias: Float[Array, "b l"] | None = None,
    ) -> Float[Array, "b l d"]:
        (mod,) = self.modulation(vec)
        x_in = modulate(x, mod)
        qkv = self.linear1_qkv(x_in)
        if self.config.lora_rank:
            qkv = qkv + self.config.lora_scale * self.processor.qkv_lora(x_in)
        q, k, v = _split_heads(qkv, self.config.num_heads)
        q, k, v = map(by_heads, (*self.norm(q, k), v))
        out = attention(rotate(q, pe), rotate(k, pe), v, key_valid, key_bias, implementation=self.config.attention)
        joined = jnp.concatenate([_merge_heads(by_tokens(out)), gelu_tanh(self.linear1_mlp(x_in))], axis=-1)
        out = self.linear2(joined)
        if self.config.lora_rank:
            out = out + self.config.lora_scale * self.processor.proj_lora(joined)
        return x + mod.gate * scan.constrain_tokens(out)


class FinalLayer(nnx.Module):
    """Modulated projection back to latent channels."""

    def __init__(self, config: FluxConfig, *, rngs: nnx.Rngs):
        d, dtype = config.hidden_size, config.dtype
        self.adaLN_modulation = nnx.Linear(d, 2 * d, dtype=dtype, rngs=rngs)
        self.linear = nnx.Linear(d, config.in_channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b l d"], vec: Float[Array, "b d"]) -> Float[Array, "b l c"]:
        shift, scale = jnp.split(self.adaLN_modulation(jax.nn.silu(vec))[:, None], 2, axis=-1)
        return self.linear(modulate(x, ModulationOut(shift, scale, gate=scale)))


class Flux(nnx.Module):
    """Predict the velocity of packed latents from time, text, and any number of style and content images."""

    def __init__(self, config: FluxConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        d, dtype = c.hidden_size, c.dtype
        self.img_in = nnx.Linear(c.in_channels, d, dtype=dtype, rngs=rngs)
        self.time_in = MLP(256, d, d, jax.nn.silu, dtype=dtype, rngs=rngs)
        self.vector_in = MLP(c.vec_in_dim, d, d, jax.nn.silu, dtype=dtype, rngs=rngs)
        if c.guidance_embed:
            # Initially silent, so that adding it to a model trained without guidance changes nothing.
            self.guidance_in = MLP(256, d, d, jax.nn.silu, silent=True, dtype=dtype, rngs=rngs)
        self.txt_in = nnx.Linear(c.context_in_dim, d, dtype=dtype, rngs=rngs)
        self.double_blocks = scan.stack(lambda rngs: DoubleStreamBlock(c, rngs=rngs), c.depth, rngs)
        self.single_blocks = scan.stack(lambda rngs: SingleStreamBlock(c, rngs=rngs), c.depth_single_blocks, rngs)
        self.final_layer = FinalLayer(c, rngs=rngs)
        if c.projector is not None:
            self.feature_embedder = PROJECTORS[c.projector.kind](c.projector, d, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        img: Float[Array, "b l c"],
        img_ids: Float[Array, "_ l 3"],
        txt: Float[Array, "b t context"],
        timesteps: Float[Array, " b"],
        y: Float[Array, "b vec"],
        guidance: Float[Array, " b"] | None = None,
        *,
        style: Float[Array, "b s d"] | None = None,
        style_valid: Bool[Array, "b s"] | None = None,
        ref_img: Float[Array, "b r c"] | None = None,
        ref_ids: Float[Array, "_ r 3"] | None = None,
        ref_valid: Bool[Array, "b r"] | None = None,
        style_bias: Float[Array, "b s"] | None = None,
        ref_bias: Float[Array, "b r"] | None = None,
    ) -> Float[Array, "b l c"]:
        """Return the float32 velocity of `img` at `timesteps`.

        Args:
          img: packed tokens of the noisy target.
          img_ids: position ids; a leading axis of 1 is shared by the batch.
          txt: T5 features.
          timesteps: times in [0, 1]; 1 is noise.
          y: CLIP's pooled vector.
          guidance: distilled guidance scale; required exactly if the config has `guidance_embed`.
          style: style tokens from `feature_embedder`, prepended to the text.
          style_valid: False where a sample lacks the token, which is equivalent to omitting it.
          ref_img: packed tokens of all content images, concatenated.
          ref_ids: position ids of `ref_img`.
          ref_valid: like `style_valid`, for `ref_img`.
          style_bias: added to the attention logits of a style token as a key: the logarithm of its weight.
          ref_bias: like `style_bias`, for `ref_img`.

        Raises:
          ValueError: `guidance` does not match the config, or only one of `ref_img` and `ref_ids` is passed.
        """
        c = self.config
        if (guidance is None) == c.guidance_embed:
            raise ValueError(
                f"guidance must {'' if c.guidance_embed else 'not '}be passed: guidance_embed={c.guidance_embed}"
            )
        if (ref_img is None) != (ref_ids is None):
            raise ValueError("ref_img and ref_ids must be passed together")
        b = img.shape[0]

        dtype = jnp.dtype(c.dtype)
        vec = self.time_in(timestep_embedding(timesteps).astype(dtype)) + self.vector_in(y.astype(dtype))
        if guidance is not None:
            vec = vec + self.guidance_in(timestep_embedding(guidance).astype(dtype))

        text = [TokenGroup(self.txt_in(txt.astype(dtype)))]
        image = [TokenGroup(self.img_in(img.astype(dtype)), img_ids)]
        if style is not None:
            text.insert(0, TokenGroup(style.astype(dtype), None, style_valid, style_bias))
        if ref_img is not None:
            image.append(TokenGroup(self.img_in(ref_img.astype(dtype)), ref_ids, ref_valid, ref_bias))
        for stream in (text, image):  # pad to a multiple of the mesh's sequence axis
            if missing := -sum(group.tokens.shape[1] for group in stream) % sequence_shards():
                filling = jnp.zeros((b, missing, c.hidden_size), dtype)
                stream.append(TokenGroup(filling, valid=jnp.zeros((b, missing), bool)))
        pe = rotary_embedding(join_groups(text + image, "ids"), c.axes_dim, c.theta)
        key_valid, key_bias = join_groups(text + image, "valid"), join_groups(text + image, "bias")

        num_img, joint = img.shape[1], (vec, pe, key_valid, key_bias)
        run = functools.partial(scan.scan, remat=c.remat, constrain=scan.constrain_tokens)
        img, txt = run(
            self.double_blocks,
            lambda block, x: block(*x, *joint),
            (join_groups(image, "tokens"), join_groups(text, "tokens")),
        )
        x = run(self.single_blocks, lambda block, x: block(x, *joint), jnp.concatenate([txt, img], axis=1))
        x = x[:, txt.shape[1] : txt.shape[1] + num_img]
        return self.final_layer(x, vec).astype(jnp.float32)
