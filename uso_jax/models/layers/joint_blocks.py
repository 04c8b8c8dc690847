# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Blocks of FLUX transformers: modulated linear layers of one or two streams around one joint attention.

Sources: black-forest-labs/flux and black-forest-labs/flux2 (model.py, modules/layers.py). FLUX.2's blocks have no
biases, gated MLPs, and one modulation for all blocks of a kind; these are facts of the config.
Shapes: b batch, l tokens, i image tokens, t text tokens, d hidden_size, n heads, k head width, r kept tokens.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from uso_jax.models.attention import dispatch
from uso_jax.models.layers import lora, scan
from uso_jax.models.layers.embeddings import rotate, rotation_tables
from uso_jax.models.layers.linear import Linear
from uso_jax.models.layers.lora import DoubleProcessor, SingleProcessor
from uso_jax.models.layers.mlp import MLP, gelu_tanh, swiglu
from uso_jax.models.projector import ProjectorConfig
from uso_jax.parallel.constraints import by_heads, by_tokens, platform


class JointConfig:
    """What the configs of all FLUX transformers share; each is a frozen dataclass with the fields that are read here.

    Attributes:
      use_bias: linear layers have biases.
      gated_mlp: MLPs are SwiGLU instead of GELU.
      shared_modulation: all blocks of a kind are modulated alike, by layers outside them.
    """

    use_bias: ClassVar[bool] = True
    gated_mlp: ClassVar[bool] = False
    shared_modulation: ClassVar[bool] = False

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
        lora.check_rules(self.lora_rules)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def adapters(self) -> Mapping[str, lora.Sizes]:
        """Rank and factor of each adapter, by its path."""
        return lora.sizes(self.lora_rank, self.lora_scale, self.lora_rules)

    def with_uso(self, lora_rank: int = 128, projector: ProjectorConfig | None = None) -> "JointConfig":
        """Return the config with USO's adapters and style projector."""
        return dataclasses.replace(self, lora_rank=lora_rank, projector=projector or ProjectorConfig())

    def without_adapters(self) -> "JointConfig":
        """Return the config without adapters, such as of weights into which they are merged."""
        return dataclasses.replace(self, lora_rank=0, lora_scale=1.0, lora_rules=())


# ---------------------------------------------------------------------------------------------------- modulation


@jax.tree_util.register_dataclass
@dataclass
class ModulationOut:
    """Shift, scale and gate of one sublayer, each [b, 1, d]."""

    shift: Array
    scale: Array
    gate: Array


def layer_norm(x: Float[Array, "b l d"], epsilon: float = 1e-6) -> Float[Array, "b l d"]:
    """Normalise channels in float32, without learned parameters."""
    x = x.astype(jnp.float32)
    x = x - x.mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + epsilon)


@functools.partial(jax.checkpoint, prevent_cse=False)  # saves only x for the backward pass, like gelu_tanh
def modulate(x: Float[Array, "b l d"], mod: ModulationOut) -> Float[Array, "b l d"]:
    """Normalise, then scale and shift; the result has the dtype of `x`."""
    return ((1 + mod.scale) * layer_norm(x) + mod.shift).astype(x.dtype)


class Modulation(nnx.Module):
    """Map the conditioning vector to shift, scale and gate of one or two sublayers."""

    def __init__(self, config: JointConfig, num_sublayers: int, *, rngs: nnx.Rngs):
        d = config.hidden_size
        self.lin = Linear(d, 3 * num_sublayers * d, use_bias=config.use_bias, dtype=config.dtype, rngs=rngs)
        self.num_sublayers = num_sublayers

    def __call__(self, vec: Float[Array, "b d"]) -> list[ModulationOut]:
        parts = jnp.split(self.lin(jax.nn.silu(vec))[:, None], 3 * self.num_sublayers, axis=-1)
        return [ModulationOut(*parts[i : i + 3]) for i in range(0, len(parts), 3)]


Condition = Float[Array, "b d"] | Sequence[list[ModulationOut]]
"""What modulates a block: the conditioning vector, or the results of the modulations that all blocks share."""


def _modulation(config: JointConfig, num_sublayers: int, rngs: nnx.Rngs) -> Modulation | None:
    return None if config.shared_modulation else Modulation(config, num_sublayers, rngs=rngs)


def _mlp(config: JointConfig, rngs: nnx.Rngs) -> MLP:
    c = config
    options = dict(gated=c.gated_mlp, use_bias=c.use_bias, dtype=c.dtype, rngs=rngs)
    return MLP(c.hidden_size, c.mlp_size, c.hidden_size, activation(c), **options)


def activation(config: JointConfig):
    """Return the activation of the config's MLPs."""
    return swiglu if config.gated_mlp else gelu_tanh


# ---------------------------------------------------------------------------------------------------- attention


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

    def __init__(self, config: JointConfig, *, rngs: nnx.Rngs):
        d, dtype = config.hidden_size, config.dtype
        self.qkv = Linear(d, 3 * d, use_bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.norm = QKNorm(config.head_dim, rngs=rngs)
        self.proj = Linear(d, d, use_bias=config.use_bias, dtype=dtype, rngs=rngs)


class KeysValues(NamedTuple):
    """Rotated keys, and values, of tokens: [b, r, n, k], or [layers, b, r, n, k] of every block of a stack."""

    keys: Array
    values: Array


class Projected(NamedTuple):
    """A stream's projected queries, keys and values, [b, l, d3], and its norm."""

    qkv: Array
    norm: QKNorm


@dataclass(frozen=True)
class Joint:
    """What the attention of every block shares.

    Attributes:
      pe: rotation angles of the block's tokens.
      key_valid: False masks a key. Keys are the block's tokens, then the kept ones; None: all valid.
      key_bias: added to the logits of a key; None: zeros.
      pair_bias: added to the logits of a query and a key; None: zeros.
      tables: the rotation angles of the fused kernels; None: attention is not fused.
      order: the keys with the valid ones first, where a kernel needs it.
    """

    pe: Float[Array, "_ l 1 pairs 2"]
    key_valid: Bool[Array, "_ keys"] | None = None
    key_bias: Float[Array, "_ keys"] | None = None
    pair_bias: dispatch.PairBias | None = None
    tables: tuple[Float[Array, "_ l k"], Float[Array, "_ l k"]] | None = None
    order: Int[Array, "_ keys"] | None = None

    @classmethod
    def build(
        cls,
        config: JointConfig,
        pe: Array,
        key_valid: Array | None = None,
        key_bias: Array | None = None,
        pair_bias: dispatch.PairBias | None = None,
    ) -> "Joint":
        """Return what the blocks of a config share; what no block changes is computed here, outside of the scan."""
        fused = dispatch.fuses(config.attention, config.head_dim, key_bias, pair_bias)
        order = dispatch.key_order(key_valid, config.attention)
        return cls(pe, key_valid, key_bias, pair_bias, rotation_tables(pe) if fused else None, order)

    def attend(
        self, streams: Sequence[Projected], kept: KeysValues | None, config: JointConfig
    ) -> tuple[list[Float[Array, "b _ d"]], KeysValues]:
        """Return each stream's attention to all tokens and kept ones, and the tokens' keys and values, to be kept."""
        if self.tables is not None:
            return self._fused(streams, kept, config)
        parts = []
        for qkv, norm in streams:
            q, k, v = _split_heads(qkv, config)
            parts.append(tuple(map(by_heads, (*norm(q, k), v))))
        q, k, v = (x[0] if len(x) == 1 else jnp.concatenate(x, axis=1) for x in zip(*parts, strict=True))
        own = KeysValues(rotate(k, self.pe), v)
        k, v = own.keys, own.values
        if kept is not None:
            k, v = jnp.concatenate([k, kept.keys], axis=1), jnp.concatenate([v, kept.values], axis=1)
        q = rotate(q, self.pe)
        masks = (self.key_valid, self.key_bias, self.pair_bias)
        out = dispatch.attention(q, k, v, *masks, order=self.order, implementation=config.attention)
        ends = np.cumsum([stream.qkv.shape[1] for stream in streams])
        return [_merge_heads(by_tokens(x)) for x in jnp.split(out, ends[:-1], axis=1)], own

    def _fused(
        self, streams: Sequence[Projected], kept: KeysValues | None, config: JointConfig
    ) -> tuple[list[Float[Array, "b _ d"]], KeysValues]:
        from uso_jax.models.attention.fused import fused_attention  # Pallas is slow to import
        from uso_jax.models.attention.heads_first import Stream, Tables

        scales = lambda norm: jnp.stack([one.scale[...] for one in (norm.query_norm, norm.key_norm)])
        out, *own = fused_attention(
            [Stream(stream.qkv, scales(stream.norm)) for stream in streams],
            Tables(*self.tables),
            config.num_heads,
            self.key_valid,
            kept,
            interpret=platform() != "tpu",
        )
        split = lambda x: x.reshape(*x.shape[:2], config.num_heads, config.head_dim)
        return [_merge_heads(by_tokens(split(x))) for x in out], KeysValues(*own)


def _split_heads(qkv: Float[Array, "b l d3"], config: JointConfig) -> list[Float[Array, "b l n k"]]:
    b, length, _ = qkv.shape
    return list(jnp.moveaxis(qkv.reshape(b, length, 3, config.num_heads, config.head_dim), 2, 0))


def _merge_heads(x: Float[Array, "b l n k"]) -> Float[Array, "b l d"]:
    return checkpoint_name(x.reshape(*x.shape[:2], x.shape[2] * x.shape[3]), "attention")


# ---------------------------------------------------------------------------------------------------- blocks


class DoubleStreamBlock(nnx.Module):
    """Separate image and text weights around one joint attention."""

    def __init__(self, config: JointConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.img_mod = _modulation(config, 2, rngs)
        self.img_attn = SelfAttention(config, rngs=rngs)
        self.img_mlp = _mlp(config, rngs)
        self.txt_mod = _modulation(config, 2, rngs)
        self.txt_attn = SelfAttention(config, rngs=rngs)
        self.txt_mlp = _mlp(config, rngs)
        if config.lora_rank:
            self.processor = DoubleProcessor(config.hidden_size, config.adapters, dtype=config.dtype, rngs=rngs)

    def _adapt(self, name: str, x: Array) -> Array | float:
        if not self.config.lora_rank:
            return 0.0
        return self.config.adapters[f"double_blocks/processor/{name}"].scale * getattr(self.processor, name)(x)

    def __call__(
        self,
        img: Float[Array, "b i d"],
        txt: Float[Array, "b t d"],
        condition: Condition,
        joint: Joint,
        kept: KeysValues | None = None,
    ) -> tuple[tuple[Float[Array, "b i d"], Float[Array, "b t d"]], KeysValues]:
        """Return the streams, and the keys and values of text and image."""
        shared = self.config.shared_modulation
        (img_mod1, img_mod2), (txt_mod1, txt_mod2) = (
            condition if shared else (self.img_mod(condition), self.txt_mod(condition))
        )
        img_in, txt_in = modulate(img, img_mod1), modulate(txt, txt_mod1)
        streams = [
            Projected(self.txt_attn.qkv(txt_in) + self._adapt("qkv_lora2", txt_in), self.txt_attn.norm),
            Projected(self.img_attn.qkv(img_in) + self._adapt("qkv_lora1", img_in), self.img_attn.norm),
        ]
        (txt_out, img_out), own = joint.attend(streams, kept, self.config)

        # Without these constraints XLA (jaxlib 0.10.2) uses gates of the wrong samples on a mesh such as data=2,
        # fsdp=2, tensor=2 with one sample per device.
        place = scan.constrain_tokens
        img = img + img_mod1.gate * place(self.img_attn.proj(img_out) + self._adapt("proj_lora1", img_out))
        img = img + img_mod2.gate * place(self.img_mlp(modulate(img, img_mod2)))
        txt = txt + txt_mod1.gate * place(self.txt_attn.proj(txt_out) + self._adapt("proj_lora2", txt_out))
        txt = txt + txt_mod2.gate * place(self.txt_mlp(modulate(txt, txt_mod2)))
        return (img, txt), own


class SingleStreamBlock(nnx.Module):
    """Parallel attention and MLP on the concatenated sequence."""

    def __init__(self, config: JointConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        d, options = c.hidden_size, dict(use_bias=c.use_bias, dtype=c.dtype, rngs=rngs)
        self.modulation = _modulation(c, 1, rngs)
        self.linear1_qkv = Linear(d, 3 * d, **options)
        self.linear1_mlp = Linear(d, 2 * c.mlp_size if c.gated_mlp else c.mlp_size, **options)
        self.norm = QKNorm(c.head_dim, rngs=rngs)
        self.linear2 = Linear(d + c.mlp_size, d, **options)
        if c.lora_rank:
            self.processor = SingleProcessor(d, c.mlp_size, c.adapters, dtype=c.dtype, rngs=rngs)

    def _adapt(self, name: str, x: Array) -> Array:
        return self.config.adapters[f"single_blocks/processor/{name}"].scale * getattr(self.processor, name)(x)

    def __call__(
        self,
        x: Float[Array, "b l d"],
        condition: Condition,
        joint: Joint,
        kept: KeysValues | None = None,
    ) -> tuple[Float[Array, "b l d"], KeysValues]:
        """Return the sequence, and its keys and values."""
        ((mod,),) = condition if self.config.shared_modulation else (self.modulation(condition),)
        x_in = modulate(x, mod)
        qkv = self.linear1_qkv(x_in)
        if self.config.lora_rank:
            qkv = qkv + self._adapt("qkv_lora", x_in)
        (out,), own = joint.attend([Projected(qkv, self.norm)], kept, self.config)
        hidden = activation(self.config)(self.linear1_mlp(x_in))
        joined = jnp.concatenate([out, hidden], axis=-1)
        out = self.linear2(joined)
        if self.config.lora_rank:
            out = out + self._adapt("proj_lora", joined)
        return x + mod.gate * scan.constrain_tokens(out), own


class FinalLayer(nnx.Module):
    """Modulated projection back to latent channels."""

    def __init__(self, config: JointConfig, *, rngs: nnx.Rngs):
        d, options = config.hidden_size, dict(use_bias=config.use_bias, dtype=config.dtype, rngs=rngs)
        self.adaLN_modulation = Linear(d, 2 * d, **options)
        self.linear = Linear(d, config.in_channels, **options)

    def __call__(self, x: Float[Array, "b l d"], vec: Float[Array, "b d"]) -> Float[Array, "b l c"]:
        shift, scale = jnp.split(self.adaLN_modulation(jax.nn.silu(vec))[:, None], 2, axis=-1)
        return self.linear(modulate(x, ModulationOut(shift, scale, gate=scale)))
