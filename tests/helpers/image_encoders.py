# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""CLIP, DINO and DINOv2 of transformers with every parameter drawn anew, and ours holding the same numbers."""

import dataclasses
import functools

import golden_files as golden
import jax
import numpy as np
import torch
import transformers
from flax import nnx
from transformers.core_model_loading import revert_weight_conversion

from convert.tables import clip as clip_tables
from convert.tables import dino as dino_tables
from uso_jax.models.clip import Clip, ClipConfig
from uso_jax.models.dino import Dino, DinoConfig

CLIP, DINO, DINOV2 = ClipConfig.tiny(), DinoConfig.tiny(), DinoConfig.tiny(layer_scale=True)
CLIP_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps")
DINO_SIZES = (*CLIP_SIZES, "image_size", "patch_size")


def redraw(model: torch.nn.Module, embedding_std: float = 1.0) -> torch.nn.Module:
    """Draw every parameter anew: at a library's initial values scales are 1 and biases 0, and mistakes do not show."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if ("norm" in name or "layrnorm" in name) and name.endswith("weight"):
            value.data = 1 + 0.3 * noise
        elif "embeddings." in name:  # the fan-in of a patch is its last three axes
            value.data = embedding_std * noise * (value[0].numel() ** -0.5 if value.ndim == 4 else 1)
        else:
            value.data = (value.shape[-1] ** -0.5 if value.ndim > 1 else 0.3) * noise
    return model.eval()


def sizes(config, names: tuple[str, ...]) -> dict:
    return {name: getattr(config, name) for name in names}


def make_torch_clip(config: ClipConfig) -> transformers.CLIPModel:
    vision, text = config.vision, config.text
    ends = {"eos_token_id": text.eos_token_id, "bos_token_id": 0, "pad_token_id": 1}
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config=sizes(vision, DINO_SIZES),
            text_config=sizes(text, (*CLIP_SIZES, "vocab_size", "max_position_embeddings")) | ends,
            projection_dim=vision.projection_dim,
        )
    )


def make_torch_dino(config: DinoConfig) -> transformers.PreTrainedModel:
    values = sizes(config, DINO_SIZES)
    if not config.layer_scale:
        return transformers.ViTModel(transformers.ViTConfig(**values), add_pooling_layer=False)
    values["mlp_ratio"] = values.pop("intermediate_size") // config.hidden_size
    return transformers.Dinov2Model(transformers.Dinov2Config(**values))


@functools.cache
def torch_clip(embedding_std: float = 1.0) -> transformers.CLIPModel:
    return redraw(make_torch_clip(CLIP), embedding_std)


@functools.cache
def torch_dino(config: DinoConfig, embedding_std: float = 1.0) -> transformers.PreTrainedModel:
    return redraw(make_torch_dino(config), embedding_std)


def tensors(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return a model's tensors by the names they have in files, where transformers names some otherwise in memory."""
    return revert_weight_conversion(model, model.state_dict())


def numbers(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in state.items()}


def dino_rows(config: DinoConfig):
    return dino_tables.DINOV2 if config.layer_scale else dino_tables.VIT


@functools.cache
def load_clip(reference=None, config: ClipConfig = CLIP) -> Clip:
    weights = numbers(tensors(reference or torch_clip()))
    return golden.load(lambda rngs: Clip(config, rngs=rngs), clip_tables.CLIP, weights)


@functools.cache
def load_dino(config: DinoConfig, reference=None, **changes) -> Dino:
    make = lambda rngs: Dino(dataclasses.replace(config, **changes), rngs=rngs)
    return golden.load(make, dino_rows(config), numbers(tensors(reference or torch_dino(config))))


def run(model: nnx.Module, *inputs, method: str = "__call__"):
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, *inputs: getattr(nnx.merge(graphdef, state), method)(*inputs))(state, *inputs)


def pixels(height: int, width: int | None = None) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, height, width or height, 3)).astype(np.float32)


def run_torch(model, images: np.ndarray, **options):
    with torch.no_grad():
        return model(pixel_values=torch.tensor(images.transpose(0, 3, 1, 2)), **options)


def openai_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename CLIPModel's tensors as OpenAI's own code has them."""
    out = {"logit_scale": state["logit_scale"], "text_projection": state["text_projection.weight"].T}
    out["visual.proj"] = state["visual_projection.weight"].T
    for theirs, ours in (("text_model.", ""), ("vision_model.", "visual.")):
        tower = {key.removeprefix(theirs): value for key, value in state.items() if key.startswith(theirs)}
        names = {
            "embeddings.token_embedding.weight": "token_embedding.weight",
            "embeddings.position_embedding.weight": "positional_embedding",
            "embeddings.class_embedding": "class_embedding",
            "embeddings.patch_embedding.weight": "conv1.weight",
            "pre_layrnorm": "ln_pre",
            "post_layernorm": "ln_post",
            "final_layer_norm": "ln_final",
            "encoder.layers": "transformer.resblocks",
            "layer_norm": "ln_",
            "mlp.fc1": "mlp.c_fc",
            "mlp.fc2": "mlp.c_proj",
            "self_attn.out_proj": "attn.out_proj",
        }
        for key, value in fuse(tower, "self_attn.{}_proj.", "qkv", "attn.in_proj_").items():
            out[ours + rename(key, names)] = value
    return out


def original_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename ViTModel's or Dinov2Model's tensors as facebookresearch's code has them."""
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.mask_token": "mask_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "encoder.layer.": "blocks.",
        "attention.output.dense": "attn.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "layernorm": "norm",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
    }
    fused = fuse(state, "attention.attention.{}.", ("query", "key", "value"), "attn.qkv.")
    return {rename(key, names): value for key, value in fused.items()}


def fuse(state: dict[str, np.ndarray], pattern: str, parts, name: str) -> dict[str, np.ndarray]:
    first, *others = (pattern.format(part) for part in parts)
    out = {}
    for key, value in state.items():
        if first in key:
            value = np.concatenate([value, *(state[key.replace(first, other)] for other in others)])
        if not any(other in key for other in others):
            out[key.replace(first, name)] = value
    return out


def rename(key: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        key = key.replace(old, new)
    return key
