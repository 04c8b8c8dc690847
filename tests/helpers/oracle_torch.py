# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny networks of diffusers and transformers with every parameter drawn anew, and ours holding the same numbers.

Initial values would hide mistakes: norm scales that are all 1 and biases that are all 0 can be swapped unseen.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import (
    FluxPosEmbed,
    FluxSingleTransformerBlock,
    FluxTransformer2DModel,
    FluxTransformerBlock,
)
from flax import nnx
from golden_files import load
from transformers import SiglipVisionConfig, SiglipVisionModel

from convert.tables.autoencoder import AUTOENCODER
from convert.tables.siglip import VISION
from uso_jax.models import autoencoder, flux, projector, siglip
from uso_jax.models.layers import joint_blocks
from uso_jax.models.layers.embeddings import rotary_embedding
from uso_jax.params import ModelDef, shapes
from uso_jax.weights.tables.flux import LORA, TRANSFORMER
from uso_jax.weights.tables.table import Row, expand

Weights = dict[str, np.ndarray]


def draw(shapes: dict[str, tuple[int, ...]], seed: int) -> Weights:
    """Draw weights that keep the size of what flows through them, biases near 0 and norm scales around 1."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes.items():
        x = rng.standard_normal(shape)
        if name.endswith("bias"):
            x = 0.1 * x
        elif len(shape) == 1:
            x = 1 + 0.3 * x
        else:
            x = x / math.sqrt(math.prod(shape[1:]))
        weights[name] = x.astype(np.float32)
    return weights


def fill(module: torch.nn.Module, weights: Weights) -> torch.nn.Module:
    module.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.items()}, strict=True)
    return module.eval().requires_grad_(False)


def drawn_for(module: torch.nn.Module, seed: int) -> Weights:
    return draw({k: tuple(v.shape) for k, v in module.state_dict().items()}, seed)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ------------------------------------------------------------------------- diffusers' names in FLUX's own

_TOP = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    **{
        f"{ours}_in.{layer}": (f"time_text_embed.{theirs}_embedder.linear_{i}",)
        for ours, theirs in (("time", "timestep"), ("guidance", "guidance"), ("vector", "text"))
        for i, layer in ((1, "in_layer"), (2, "out_layer"))
    },
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_DOUBLE = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_SINGLE = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
_BLOCKS = {"double_blocks": ("transformer_blocks", _DOUBLE), "single_blocks": ("single_transformer_blocks", _SINGLE)}


def _rename(table: dict[str, tuple[str, ...]], weights: Weights) -> Weights:
    """Rename and join tensors; every one must be used."""
    renamed, used = {}, set()
    for ours, theirs in table.items():
        for suffix in ("weight", "bias"):
            keys = [f"{name}.{suffix}" for name in theirs]
            if keys[0] in weights:
                name = f"{ours}.{'scale' if ours.endswith('_norm') else suffix}"
                renamed[name] = np.concatenate([weights[key] for key in keys])
                used.update(keys)
    assert used == weights.keys()
    return renamed


def flux_names(weights: Weights) -> Weights:
    """Rename the weights of a diffusers transformer to the original names."""
    table = dict(_TOP)
    for ours, (theirs, block) in _BLOCKS.items():
        for i in {int(key.split(".")[1]) for key in weights if key.startswith(theirs)}:
            table |= {f"{ours}.{i}.{a}": tuple(f"{theirs}.{i}.{b}" for b in names) for a, names in block.items()}
    renamed = _rename(table, weights)
    for suffix in ("weight", "bias"):  # diffusers keeps scale before shift here, FLUX shift before scale
        key = f"final_layer.adaLN_modulation.1.{suffix}"
        renamed[key] = np.concatenate(np.split(renamed[key], 2)[::-1])
    return renamed


# ---------------------------------------------------------------------------------------- whole networks


def torch_flux(c: flux.FluxConfig) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=c.in_channels,
        num_layers=c.depth,
        num_single_layers=c.depth_single_blocks,
        attention_head_dim=c.head_dim,
        num_attention_heads=c.num_heads,
        joint_attention_dim=c.context_in_dim,
        pooled_projection_dim=c.vec_in_dim,
        guidance_embeds=c.guidance_embed,
        axes_dims_rope=c.axes_dim,
    )


def flux_pair(guidance: bool) -> tuple[flux.Flux, FluxTransformer2DModel]:
    c = flux.FluxConfig.tiny(lora_rank=0, projector=None, guidance_embed=guidance)
    theirs = torch_flux(c)
    weights = drawn_for(theirs, 0)
    return load(lambda rngs: flux.Flux(c, rngs=rngs), TRANSFORMER, flux_names(weights)), fill(theirs, weights)


def autoencoder_pair() -> tuple[autoencoder.AutoEncoder, AutoencoderKL]:
    """Use diffusers' own conversion of FLUX's names; three levels, so that their order shows."""
    c = autoencoder.AutoEncoderConfig.tiny(ch_mult=(1, 2, 4), num_res_blocks=2)
    blocks = len(c.ch_mult)
    theirs = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=tuple(c.ch * mult for mult in c.ch_mult),
        layers_per_block=c.num_res_blocks,
        latent_channels=c.z_channels,
        norm_num_groups=c.norm_groups,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    make = lambda rngs: autoencoder.AutoEncoder(c, rngs=rngs)
    weights = draw({key: entry.shape for key, entry in expand(AUTOENCODER, shapes(make)).items()}, 1)
    renamed = convert_ldm_vae_checkpoint({k: torch.from_numpy(v) for k, v in weights.items()}, theirs.config)
    return load(make, AUTOENCODER, weights), fill(theirs, {k: v.numpy() for k, v in renamed.items()})


def siglip_pair() -> tuple[siglip.SiglipVision, SiglipVisionModel]:
    c = siglip.SiglipConfig.tiny(image_size=28, patch_size=9)  # one row and column of pixels fits no patch
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    theirs = SiglipVisionModel(SiglipVisionConfig(**{size: getattr(c, size) for size in sizes}))
    weights = drawn_for(theirs, 2)
    return load(lambda rngs: siglip.SiglipVision(c, rngs=rngs), VISION, weights), fill(theirs, weights)


# ------------------------------------------------------------------------------------------------- blocks


def block_rows(name: str) -> tuple[Row, ...]:
    """Return the rows of the conversion table for one block, by their names inside the block."""
    inner = lambda path: tuple(map(inner, path)) if isinstance(path, tuple) else path.removeprefix(f"{name}/")
    prefix = f"{name}.{{i}}."
    return tuple((t.removeprefix(prefix), inner(f), k) for t, f, k in TRANSFORMER + LORA if t.startswith(prefix))


_ADAPTED = {  # adapter -> diffusers' layers whose weights it adds to
    "double_blocks": {
        "qkv_lora1": _DOUBLE["img_attn.qkv"],
        "qkv_lora2": _DOUBLE["txt_attn.qkv"],
        "proj_lora1": _DOUBLE["img_attn.proj"],
        "proj_lora2": _DOUBLE["txt_attn.proj"],
    },
    "single_blocks": {"qkv_lora": _SINGLE["linear1"][:3], "proj_lora": _SINGLE["linear2"]},
}


@functools.cache
def _block_weights(name: str, rank: int) -> tuple[torch.nn.Module, Weights]:
    """Return diffusers' block with the adapters merged into its weights, and our weights under FLUX's names."""
    c = flux.FluxConfig.tiny(lora_rank=rank, lora_scale=0.7)
    kind = FluxTransformerBlock if name == "double_blocks" else FluxSingleTransformerBlock
    theirs = kind(c.hidden_size, c.num_heads, c.head_dim)
    weights = drawn_for(theirs, 3)
    ours = _rename(_BLOCKS[name][1], weights)
    for seed, (adapter, layers) in enumerate(_ADAPTED[name].items() if rank else ()):
        in_features = weights[f"{layers[0]}.weight"].shape[1]
        out_features = sum(len(weights[f"{layer}.weight"]) for layer in layers)
        key = f"processor.{adapter}.{{}}.weight".format
        ours |= draw({key("down"): (rank, in_features), key("up"): (out_features, rank)}, 10 + seed)
        delta = c.lora_scale * (ours[key("up")].astype(np.float64) @ ours[key("down")])
        for layer, part in zip(layers, np.split(delta, len(layers)), strict=True):
            weights[f"{layer}.weight"] = (weights[f"{layer}.weight"] + part).astype(np.float32)
    return fill(theirs, weights), ours


def block_outputs(name: str, scale: float, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Run one block, ours and diffusers', on inputs of standard deviation `scale`, with the vector given."""
    c = flux.FluxConfig.tiny(lora_rank=rank, lora_scale=0.7)
    kind = {"double_blocks": joint_blocks.DoubleStreamBlock, "single_blocks": joint_blocks.SingleStreamBlock}[name]
    theirs, weights = _block_weights(name, rank)
    ours = load(lambda rngs: kind(c, rngs=rngs), block_rows(name), weights)
    img, txt, vec = scale * normal(5, 2, 7, c.hidden_size), scale * normal(6, 2, 4, c.hidden_size), normal(7, 2, 32)
    # Positions as far out as those of a reference beside a 1024 x 1024 target.
    ids = np.zeros((11, 3), np.float32)
    ids[4:, 1:] = np.random.default_rng(8).integers(0, 128, (7, 2))
    joint = joint_blocks.Joint(rotary_embedding(jnp.asarray(ids)[None], c.axes_dim, c.theta))
    t = torch.from_numpy
    want_txt, want_img = theirs(t(img), t(txt), t(vec), FluxPosEmbed(c.theta, c.axes_dim)(t(ids)))
    want = torch.cat([want_txt, want_img], dim=1).numpy()
    if name == "double_blocks":
        (got_img, got_txt), _ = ours(jnp.asarray(img), jnp.asarray(txt), jnp.asarray(vec), joint)
        return np.concatenate([got_txt, got_img], axis=1), want
    got, _ = ours(jnp.asarray(np.concatenate([txt, img], axis=1)), jnp.asarray(vec), joint)
    return np.asarray(got), want


# -------------------------------------------------------------------------------------------------- norms

_NORMED = 16


@functools.cache
def _module(kind: type, *config, **sizes) -> nnx.Module:
    """Return a module with random parameters; its initialisation would take seconds to compile."""
    structure = ModelDef(lambda rngs: kind(*config, **sizes, rngs=rngs))
    weights = draw({path: struct.shape for path, struct in structure.shapes.items()}, 9)
    return structure({path: jnp.asarray(x) for path, x in weights.items()})


def norms(name: str) -> list[nnx.Module]:
    if name == "query_key":
        norm = _module(joint_blocks.QKNorm, _NORMED)
        return [norm.query_norm, norm.key_norm]
    if name == "projector":
        sizes = projector.ProjectorConfig(siglip_tokens=3, style_tokens=2, siglip_dim=_NORMED)
        return [
            getattr(_module(projector.HierarchicalProjector, sizes, 8), f"{level}_layer_norm")
            for level in projector.LEVELS
        ]
    if name == "siglip":
        tower = _module(siglip.SiglipVision, siglip.SiglipConfig.tiny(hidden_size=_NORMED))
        layer = _module(siglip.siglip_layer, tower.config)
        return [layer.layer_norm1, layer.layer_norm2, tower.post_layernorm, tower.head.layernorm]
    encoder = _module(autoencoder.Encoder, autoencoder.AutoEncoderConfig.tiny(ch=_NORMED, ch_mult=(1,)))
    return [encoder.mid.block_1.norm1, encoder.mid.block_1.norm2, encoder.mid.attn_1.norm, encoder.norm_out]


def norm_outputs(name: str, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Run one kind of norm, ours and torch's, with its epsilon in the original: 1e-5 in the projector, else 1e-6."""
    x = scale * normal(9, 2, 5, 3, _NORMED)
    t, size = torch.from_numpy(x), (_NORMED,)
    if name == "modulated":
        return np.asarray(joint_blocks.layer_norm(jnp.asarray(x[:, 0]))), F.layer_norm(t[:, 0], size, eps=1e-6).numpy()
    got, want = [], []
    for norm in norms(name):
        got.append(np.asarray(norm(jnp.asarray(x))))
        weight = torch.from_numpy(np.array(norm.scale[...]))
        if name == "query_key":
            want.append(F.rms_norm(t, size, weight, eps=1e-6))
            continue
        bias = torch.from_numpy(np.array(norm.bias[...]))
        if name == "group":
            nchw = F.group_norm(t.permute(0, 3, 1, 2), norm.num_groups, weight, bias, eps=1e-6)
            want.append(nchw.permute(0, 2, 3, 1))
        else:
            want.append(F.layer_norm(t, size, weight, bias, eps=1e-5 if name == "projector" else 1e-6))
    return np.stack(got), torch.stack(want).numpy()


NORMS = ("modulated", "query_key", "projector", "siglip", "group")
