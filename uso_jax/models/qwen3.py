# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The Qwen3 decoder as a text encoder: hidden states of three depths are FLUX.2 [klein]'s text tokens.

Sources: transformers, models/qwen3/modeling_qwen3.py (`Qwen3ForCausalLM`); black-forest-labs/flux2, text_encoder.py.
Parameter names match transformers. Layers above the deepest state that is read, the final norm and the head are left
out. Attention is causal and masks padding; positions count padding, as in transformers.
Shapes: b batch, l tokens, d hidden_size, n heads, m key-value heads, k head_dim.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from uso_jax.models.layers import scan
from uso_jax.models.layers.linear import Linear


@dataclass(frozen=True)
class Qwen3Config:
    """Sizes and numerics; the defaults are the part of Qwen3-4B that FLUX.2-klein-4B reads."""

    vocab_size: int = 151936  # tokens of the vocabulary
    hidden_size: int = 2560  # width of the residual stream
    intermediate_size: int = 9728  # width of the gated MLP
    num_hidden_layers: int = 27  # layers that are read; the checkpoint has 36
    num_attention_heads: int = 32  # query heads
    num_key_value_heads: int = 8  # key and value heads; each serves a group of query heads
    head_dim: int = 128  # width of a head
    rope_theta: float = 1_000_000.0  # base of the rotary frequencies
    rms_norm_eps: float = 1e-6  # added to the mean square in norms
    hidden_states: tuple[int, ...] = (9, 18, 27)
    """States that make up a text token: entry 0 is the embedding, entry i the output of layer i."""
    dtype: str = "bfloat16"  # of matrix products and the residual
    remat: str = "full"  # a key of scan.REMAT_POLICIES

    def __post_init__(self):
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not divisible by num_key_value_heads"
                f" {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even: rotations act on pairs")
        if not self.hidden_states or not all(0 <= n <= self.num_hidden_layers for n in self.hidden_states):
            raise ValueError(f"hidden_states {self.hidden_states} must be from 0 to {self.num_hidden_layers}")
        scan.check_remat(self.remat)

    @property
    def width(self) -> int:
        """Channels of a text token."""
        return len(self.hidden_states) * self.hidden_size

    @classmethod
    def tiny(cls, **changes) -> "Qwen3Config":
        """Return the config of a float32 encoder for tests that matches `Flux2Config.tiny`'s `context_in_dim`."""
        sizes = dict(
            vocab_size=64,
            hidden_size=8,
            intermediate_size=20,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=4,
            hidden_states=(1, 2, 4),
            dtype="float32",
            remat="none",
        )
        return cls(**(sizes | changes))


PRESETS = {
    "qwen3-4b": Qwen3Config(),
    "qwen3-8b": Qwen3Config(hidden_size=4096, intermediate_size=12288),
}


def rotate_halves(x: Float[Array, "b l h k"], theta: float) -> Float[Array, "b l h k"]:
    """Rotate channels i and i + k/2 by the token's place times theta^(-2i/k), in float32."""
    width = x.shape[-1]
    frequencies = theta ** -(np.arange(0, width, 2) / width)
    angles = jnp.asarray(np.arange(x.shape[1])[:, None] * frequencies, jnp.float32)[None, :, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _norm(width: int, config: Qwen3Config, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(width, epsilon=config.rms_norm_eps, dtype=jnp.float32, rngs=rngs)


def _linear(config: Qwen3Config, in_dim: int, out_dim: int, rngs: nnx.Rngs) -> Linear:
    return Linear(in_dim, out_dim, use_bias=False, dtype=config.dtype, rngs=rngs)


class Qwen3Attention(nnx.Module):
    """Causal attention with fewer key-value heads than query heads, and norms on queries and keys."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        c = self.config = config
        self.q_proj = _linear(c, c.hidden_size, c.num_attention_heads * c.head_dim, rngs)
        self.k_proj = _linear(c, c.hidden_size, c.num_key_value_heads * c.head_dim, rngs)
        self.v_proj = _linear(c, c.hidden_size, c.num_key_value_heads * c.head_dim, rngs)
        self.o_proj = _linear(c, c.num_attention_heads * c.head_dim, c.hidden_size, rngs)
        self.q_norm, self.k_norm = _norm(c.head_dim, c, rngs), _norm(c.head_dim, c, rngs)

    def __call__(self, x: Float[Array, "b l d"], mask: Bool[Array, "b 1 l l"]) -> Float[Array, "b l d"]:
        heads = lambda layer: layer(x).reshape(*x.shape[:2], -1, self.config.head_dim)
        place = lambda norm, y: rotate_halves(norm(y).astype(x.dtype), self.config.rope_theta)
        q, k, v = place(self.q_norm, heads(self.q_proj)), place(self.k_norm, heads(self.k_proj)), heads(self.v_proj)
        # `attention.dispatch` has no causal mask, and 512 tokens need no fused kernel. The softmax is in float32.
        out = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")
        return self.o_proj(out.reshape(*x.shape[:2], -1))


class Qwen3MLP(nnx.Module):
    """The feed-forward layer, gated by SiLU."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        c = config
        self.gate_proj = _linear(c, c.hidden_size, c.intermediate_size, rngs)
        self.up_proj = _linear(c, c.hidden_size, c.intermediate_size, rngs)
        self.down_proj = _linear(c, c.intermediate_size, c.hidden_size, rngs)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Qwen3Layer(nnx.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        self.input_layernorm = _norm(config.hidden_size, config, rngs)
        self.self_attn = Qwen3Attention(config, rngs=rngs)
        self.post_attention_layernorm = _norm(config.hidden_size, config, rngs)
        self.mlp = Qwen3MLP(config, rngs=rngs)

    def __call__(self, x: Float[Array, "b l d"], mask: Bool[Array, "b 1 l l"]) -> Float[Array, "b l d"]:
        x = x + self.self_attn(self.input_layernorm(x).astype(x.dtype), mask)
        return x + self.mlp(self.post_attention_layernorm(x).astype(x.dtype))


class Qwen3Encoder(nnx.Module):
    """Encode token ids by the states of several layers."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        c = self.config = config
        self.embed_tokens = nnx.Embed(c.vocab_size, c.hidden_size, dtype=c.dtype, rngs=rngs)
        self.layers = scan.stack(lambda rngs: Qwen3Layer(c, rngs=rngs), c.num_hidden_layers, rngs)

    def __call__(self, input_ids: Int[Array, "b l"], valid: Bool[Array, "b l"]) -> Float[Array, "b l width"]:
        """Return the config's hidden states, concatenated on channels.

        An id outside the vocabulary makes its sample NaN.

        Args:
          input_ids: token ids, padded on either side.
          valid: False at padding, which no token attends to; the states of padding are defined but arbitrary.
        """
        length = input_ids.shape[1]
        mask = jnp.tril(jnp.ones((length, length), bool))[None, None] & valid[:, None, None, :]
        wanted = jnp.asarray(self.config.hidden_states, jnp.int32)
        x = self.embed_tokens(input_ids)
        states = jnp.broadcast_to(x[:, None], (len(x), len(self.config.hidden_states), *x.shape[1:]))

        def step(layer, carry):
            # Only the states that are read are carried, so memory does not grow with depth.
            index, x, states = carry
            index, x = index + 1, layer(x, mask)
            return index, x, jnp.where((wanted == index)[None, :, None, None], x[:, None], states)

        carry = (jnp.zeros((), jnp.int32), x, states)
        _, _, states = scan.scan(self.layers, step, carry, remat=self.config.remat)
        return jnp.moveaxis(states, 1, 2).reshape(len(x), length, -1)
