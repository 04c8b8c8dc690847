# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The checkpoint files this project knows, recognised by the names of their tensors, never by the file's name.

To add a layout: write its table (see uso_jax.weights.tables.table) and append a `Family` to `FAMILIES`; the functions
that read sizes off shapes are in convert.tables.infer_sizes.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from uso_jax import params
from uso_jax.common.errors import InputError
from uso_jax.models.components import ADAPTERS, row_of, split_transformer
from uso_jax.weights import manifest_configs
from uso_jax.weights.adapters import keys
from uso_jax.weights.tables.flux import LORA, PROJECTOR, TRANSFORMER, TRANSFORMER_DIFFUSERS
from uso_jax.weights.tables.table import Row

from .family import Family
from .layouts_flux2 import AE, AE_DIFFUSERS, COMFY, FLUX2, VAE, autoencoder_sizes
from .tables.autoencoder import AUTOENCODER, AUTOENCODER_DIFFUSERS
from .tables.clip import CLIP, CSD, TEXT
from .tables.dino import DINOV2, ORIGINAL, VIT
from .tables.infer_sizes import (
    Size,
    always,
    count,
    dim,
    grid_size,
    has,
    image_size,
    known,
    lora_sizes,
    ratio,
)
from .tables.metrics import IMAGE_REWARD, INCEPTION
from .tables.siglip import VISION
from .tables.t5 import ALIASES, ENCODER


def _flux_sizes(width: Size, head: Size, keys: Mapping[str, str], blocks: Sequence[str]) -> dict[str, dict[str, Size]]:
    return {"flux": {
        "in_channels":         dim(keys["img_in"], 1),
        "vec_in_dim":          dim(keys["vector_in"], 1),
        "context_in_dim":      dim(keys["txt_in"], 1),
        "hidden_size":         width,
        "mlp_ratio":           ratio(dim(keys["mlp"], 0), width),
        "num_heads":           ratio(width, head, whole=True),
        "depth":               count(rf"{blocks[0]}\.(\d+)\."),
        "depth_single_blocks": count(rf"{blocks[1]}\.(\d+)\."),
        "axes_dim":            known(head, {128: (16, 56, 56)}),
        "qkv_bias":            has(keys["qkv_bias"]),
        "guidance_embed":      has(keys["guidance_in"]),
    }}  # fmt: skip


# fmt: off
_BFL = {
    "img_in": "img_in.weight", "vector_in": "vector_in.in_layer.weight", "txt_in": "txt_in.weight",
    "mlp": "double_blocks.0.img_mlp.0.weight", "qkv_bias": "double_blocks.0.img_attn.qkv.bias",
    "guidance_in": "guidance_in.in_layer.weight",
}
_DIFFUSERS = {
    "img_in": "x_embedder.weight", "vector_in": "time_text_embed.text_embedder.linear_1.weight",
    "txt_in": "context_embedder.weight", "mlp": "transformer_blocks.0.ff.net.0.proj.weight",
    "qkv_bias": "transformer_blocks.0.attn.to_q.bias",
    "guidance_in": "time_text_embed.guidance_embedder.linear_1.weight",
}
_PATCH = "embeddings.patch_embedding.weight"
_HIGH = "feature_embedder.high_embedding_linear.0.weight"
_LORA, _LORA2 = ({"lora": {"rank": lora_sizes("rank"), "rules": lora_sizes("rules")}, section: {
    name: lora_sizes(name, section) for name in ("hidden_size", "mlp_ratio", "depth", "depth_single_blocks")
}} for section in ("flux", "flux2"))
_CLIP_PATCH = "vision_model.embeddings.patch_embedding.weight"
_CSD = "backbone.conv1.weight"
_BERT = "blip.text_encoder."
_BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def _clip_text(prefix: str) -> dict[str, Size]:
    tokens = f"{prefix}embeddings.token_embedding.weight"
    return {
        "vocab_size":              dim(tokens, 0),
        "hidden_size":             dim(tokens, 1),
        "intermediate_size":       dim(f"{prefix}encoder.layers.0.mlp.fc1.weight", 0),
        "num_hidden_layers":       count(rf"{re.escape(prefix)}encoder\.layers\.(\d+)\."),
        "num_attention_heads":     known(dim(tokens, 1), {512: 8, 768: 12, 1024: 16, 1280: 20}),
        "max_position_embeddings": dim(f"{prefix}embeddings.position_embedding.weight", 0),
        "eos_token_id":            known(dim(tokens, 0), {49408: 49407}),
    }


def _dino(patch: str, cls: str, pos: str, fc1: str, layers: str, scale: bool) -> dict[str, Size]:
    return {
        "hidden_size":         dim(cls, 2),
        "intermediate_size":   dim(fc1, 0),
        "num_hidden_layers":   count(layers),
        "num_attention_heads": ratio(dim(cls, 2), always(64), whole=True),
        "image_size":          grid_size(patch, pos, axis=1),
        "patch_size":          dim(patch, 2),
        "layer_scale":         always(scale),
    }


def _original(scale: bool) -> dict[str, Size]:
    patch, layers = "patch_embed.proj.weight", r"blocks\.(\d+)\."
    return _dino(patch, "cls_token", "pos_embed", "blocks.0.mlp.fc1.weight", layers, scale)


def _transformers(fc1: str, scale: bool) -> dict[str, Size]:
    patch, layers = "embeddings.patch_embeddings.projection.weight", r"encoder\.layer\.(\d+)\."
    cls, positions = "embeddings.cls_token", "embeddings.position_embeddings"
    return _dino(patch, cls, positions, f"encoder.layer.0.{fc1}.weight", layers, scale)


def _without_scale(rows: Sequence[Row]) -> tuple[Row, ...]:
    return tuple(row for row in rows if row[1] not in ("mask_token", "blocks/ls1", "blocks/ls2"))


FAMILIES: tuple[Family, ...] = (
    Family("flux", "FLUX transformer (black-forest-labs names)", "transformer", TRANSFORMER,
        _flux_sizes(dim("img_in.weight", 0), dim("double_blocks.0.img_attn.norm.query_norm.scale", 0), _BFL,
                    ("double_blocks", "single_blocks")),
        prefixes=COMFY),
    Family("flux-diffusers", "FLUX transformer (diffusers names)", "transformer", TRANSFORMER_DIFFUSERS,
        _flux_sizes(dim("x_embedder.weight", 0), dim("transformer_blocks.0.attn.norm_q.weight", 0), _DIFFUSERS,
                    ("transformer_blocks", "single_transformer_blocks"))),
    Family("uso-lora", "USO adapters for FLUX", "lora", LORA, _LORA, prefixes=("", "diffusion_model."),
        pattern=r"(double|single)_blocks\.\d+\.processor\..*"),
    Family("comfy-lora", "adapters for FLUX (ComfyUI names)", "lora", LORA, _LORA,
        pattern=r"((model\.)?diffusion_model\.)?(?!.*\.processor\.)(double|single)_blocks\.\d+\..*" + keys.ENDS),
    Family("diffusers-lora", "adapters for FLUX (diffusers names; PEFT, ai-toolkit)", "lora", LORA, _LORA,
        pattern=r"((base_model\.model\.|transformer\.)+|text_encoder(_\d)?\."
                r"|((model\.)?diffusion_model\.)?(single_)?transformer_blocks\.).*" + keys.ENDS),
    Family("kohya-lora", "adapters for FLUX (kohya's names)", "lora", LORA, _LORA,
        pattern=r"lora_(unet|transformer|te\d?)_.*" + keys.ENDS),
    Family("uso-projector", "USO style projector", "projector", PROJECTOR, {
        "projector": {
            "siglip_tokens": dim(_HIGH, 1),
            "style_tokens":  dim(_HIGH, 0),
            "siglip_dim":    dim("feature_embedder.high_projection.weight", 1),
        },
        "flux": {"hidden_size": dim("feature_embedder.high_projection.weight", 0)},
    }),
    Family("siglip", "SigLIP vision tower (transformers names)", "siglip", VISION, {"siglip": {
        "hidden_size":         dim(_PATCH, 0),
        "intermediate_size":   dim("encoder.layers.0.mlp.fc1.weight", 0),
        "num_hidden_layers":   count(r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": known(dim(_PATCH, 0), {768: 12, 1024: 16, 1152: 16}),
        "image_size":          image_size(_PATCH, "embeddings.position_embedding.weight"),
        "patch_size":          dim(_PATCH, 2),
    }}, prefixes=("vision_model.", ""),
        ignore=r"text_model\..*|logit_(scale|bias)|vision_model\.embeddings\.position_ids",
        foreign=r"(vision_model\.)?embeddings\.class_embedding"),
    Family("flux-ae", "FLUX autoencoder (black-forest-labs names)", "autoencoder", AUTOENCODER,
        autoencoder_sizes("autoencoder", *AE), prefixes=VAE),
    Family("flux-ae-diffusers", "FLUX autoencoder (diffusers names)", "autoencoder", AUTOENCODER_DIFFUSERS,
        autoencoder_sizes("autoencoder", *AE_DIFFUSERS)),
    Family("t5", "T5 encoder (transformers names)", "t5", ENCODER, {"t5": {
        "vocab_size":     dim("shared.weight", 0),
        "d_model":        dim("shared.weight", 1),
        "d_kv":           ratio(dim("encoder.block.0.layer.0.SelfAttention.q.weight", 0),
                                dim(_BIAS, 1), whole=True),
        "d_ff":           dim("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 0),
        "num_layers":     count(r"encoder\.block\.(\d+)\."),
        "num_heads":      dim(_BIAS, 1),
        "relative_attention_num_buckets": dim(_BIAS, 0),
    }}, prefixes=("", "text_encoders.t5xxl.transformer.", "t5xxl.transformer."), aliases=ALIASES,
        ignore=r"decoder\..*|lm_head\..*|(text_encoders\.)?t5xxl\.(logit_scale|transformer\.(decoder|lm_head)\..*)|spiece_model"),
    Family("clip-text", "CLIP text transformer (transformers names)", "clip", TEXT, {"clip": {
        **_clip_text(""),
        "projection_dim": always(0),  # FLUX reads the text without CLIP's projection
    }}, prefixes=("text_model.", "", "text_encoders.clip_l.transformer.text_model.", "clip_l.transformer.text_model."),
        ignore=r"vision_model\..*|(.*\.)?logit_scale|(.*\.)?(text|visual)_projection(\.weight)?|(.*\.)?embeddings\.position_ids",
        foreign=r"text_model\.head\..*|logit_bias|(vision_model\.)?embeddings\.patch_embedding\.bias"),
    Family("clip-model", "CLIP, both towers (transformers names)", "clip_model", CLIP, {
        "clip_vision": {
            "hidden_size":         dim("vision_model.embeddings.class_embedding", 0),
            "intermediate_size":   dim("vision_model.encoder.layers.0.mlp.fc1.weight", 0),
            "num_hidden_layers":   count(r"vision_model\.encoder\.layers\.(\d+)\."),
            "num_attention_heads": ratio(dim("vision_model.embeddings.class_embedding", 0), always(64), whole=True),
            "image_size":          grid_size(_CLIP_PATCH, "vision_model.embeddings.position_embedding.weight", axis=0),
            "patch_size":          dim(_CLIP_PATCH, 2),
            "projection_dim":      dim("visual_projection.weight", 0),
        },
        "clip_text": _clip_text("text_model.") | {"projection_dim": dim("text_projection.weight", 0)},
    }, ignore=r".*\.position_ids", asked_for=True),
    Family("csd", "CSD style encoder (its authors' names)", "csd", CSD, {"csd": {
        "hidden_size":         dim(_CSD, 0),
        "intermediate_size":   dim("backbone.transformer.resblocks.0.mlp.c_fc.weight", 0),
        "num_hidden_layers":   count(r"backbone\.transformer\.resblocks\.(\d+)\."),
        "num_attention_heads": ratio(dim(_CSD, 0), always(64), whole=True),
        "image_size":          grid_size(_CSD, "backbone.positional_embedding", axis=0),
        "patch_size":          dim(_CSD, 2),
        "projection_dim":      dim("last_layer_style", 1),
    }}, prefixes=("", "module.")),
    Family("dino", "DINO (its authors' names)", "dino", _without_scale(ORIGINAL), {"dino": _original(False)},
        prefixes=("", "backbone.", "module.backbone."), ignore=r"(module\.)?head\..*"),
    Family("dino-vit", "DINO (transformers names)", "dino", _without_scale(VIT),
        {"dino": _transformers("intermediate.dense", False)}, prefixes=("", "vit."),
        ignore=r"pooler\..*|classifier\..*"),
    Family("dinov2", "DINOv2 (its authors' names)", "dinov2", ORIGINAL, {"dinov2": _original(True)},
        ignore=r"head\..*"),
    Family("dinov2-transformers", "DINOv2 (transformers names)", "dinov2", DINOV2,
        {"dinov2": _transformers("mlp.fc1", True)}, prefixes=("", "dinov2."), ignore=r"classifier\..*"),
    Family("image-reward", "ImageReward (its authors' names)", "image_reward", IMAGE_REWARD, {
        "image_reward_vision": _dino(
            "blip.visual_encoder.patch_embed.proj.weight", "blip.visual_encoder.cls_token",
            "blip.visual_encoder.pos_embed", "blip.visual_encoder.blocks.0.mlp.fc1.weight",
            r"blip\.visual_encoder\.blocks\.(\d+)\.", False),
        "image_reward_text": {
            "vocab_size":              dim(f"{_BERT}embeddings.word_embeddings.weight", 0),
            "hidden_size":             dim(f"{_BERT}embeddings.word_embeddings.weight", 1),
            "intermediate_size":       dim(f"{_BERT}encoder.layer.0.intermediate.dense.weight", 0),
            "num_hidden_layers":       count(r"blip\.text_encoder\.encoder\.layer\.(\d+)\."),
            "num_attention_heads":     ratio(dim(f"{_BERT}embeddings.LayerNorm.weight", 0), always(64), whole=True),
            "max_position_embeddings": dim(f"{_BERT}embeddings.position_embeddings.weight", 0),
            "encoder_hidden_size":     dim(f"{_BERT}encoder.layer.0.crossattention.self.key.weight", 1),
        },
    }, ignore=r"blip\.(text_proj|vision_proj|itm_head|text_encoder\.(pooler|embeddings\.position_ids))\b.*"),
    Family("inception", "Inception v3 of FID (pytorch-fid's names)", "inception", INCEPTION,
        {"inception": {"divisor": ratio(always(32), dim("Conv2d_1a_3x3.conv.weight", 0), whole=True)}},
        ignore=r"fc\..*|AuxLogits\..*|.*\.num_batches_tracked"),
    *FLUX2,  # last: files of FLUX.1 fit these tables in part, and the fuller table, or else the first, is taken
)
# fmt: on


# ---------------------------------------------------------------------------------------------------- recognition

_SECOND = 8  # keys that another network in the same file must have at least


def detect(keys: Iterable[str], component: str | None = None) -> list[tuple[Family, str, list[str]]]:
    """Return the families in a file, each with its prefix and keys; the one with the most keys comes first."""
    layers: dict[str, list[str]] = {}  # patterns do not distinguish numbers, so each is tried once for all of them
    for key in keys:
        layers.setdefault(re.sub(r"\d+", "0", key), []).append(key)
    candidates: list[tuple[Family, str, list[str]]] = []
    for family in FAMILIES:
        if family.asked_for and family.component != component:
            continue
        if not (family.foreign and any(re.fullmatch(family.foreign, key) for key in layers)):
            for prefix in family.prefixes:
                start, match = re.sub(r"\d+", "0", prefix), family.regex.fullmatch
                fits = (name for name in layers if name.startswith(start) and match(name, len(start)))
                own = [key for name in fits for key in layers[name] if key.startswith(prefix)]
                candidates.append((family, prefix, own))
    found: list[tuple[Family, str, list[str]]] = []
    while candidates:
        best = max(candidates, key=lambda candidate: len(candidate[2]))
        # A few names in common with another network do not make a second component.
        if len(best[2]) < (_SECOND if found else 1):
            break
        found.append(best)
        gone = set(best[2])
        candidates = [(f, prefix, [key for key in own if key not in gone]) for f, prefix, own in candidates]
    return found


def family_by_name(name: str) -> Family:
    """Return the family with a name."""
    return next(family for family in FAMILIES if family.name == name)


def export_family(component: str, name: str) -> Family:
    """Return the family to export a component in: the one called `name`, or else the component's first."""
    fitting = [family for family in FAMILIES if family.component == component]
    if not fitting:
        known_ = ", ".join(dict.fromkeys(family.component for family in FAMILIES))
        raise InputError(f"{component} has no export; components are {known_}")
    return next((family for family in fitting if family.name == name), fitting[0])


def for_base(family: Family, shapes: Mapping[str, tuple[int, ...]], given: Iterable[str]) -> Family:
    """Return a family of adapters with the sizes of the base model that they are for.

    Names do not tell the base models apart: MLPs of FLUX.2 are narrower, and a `--config` may name its section.
    """
    if family.component not in ADAPTERS or not ("flux2" in given or lora_sizes("mlp_ratio", "")(shapes) == 3):
        return family
    sizes = (
        _LORA2
        if family.component == "lora"
        else {"flux2" if section == "flux" else section: fields for section, fields in family.sizes.items()}
    )
    return dataclasses.replace(family, sizes=sizes)


def build_model(component: str, sections: manifest_configs.Sections) -> tuple[Any, dict[str, jax.ShapeDtypeStruct]]:
    """Return the config of these sizes, and the parameters of its model that the component's tensors fill."""
    row = row_of("transformer" if component in ADAPTERS else component, sections)
    # No shape shows how heads are cut, and which token ends a text; unless they are given, the check comes later.
    loose = {"num_attention_heads": 1, "eos_token_id": 1} | ({"num_heads": 1} if row.folder == "transformer" else {})
    known = row.fields()
    filled = {
        section: {name: value for name, value in loose.items() if name in known.get(section, ())} | dict(values)
        for section, values in sections.items()
    }
    if row.folder != "transformer":
        config = manifest_configs.build(row.name, filled)
        return config, params.shapes(lambda rngs: row.module(config, rngs=rngs))
    # No shape depends on how heads are rotated, nor any adapter's on how many there are.
    sizes = filled[row.name]
    sizes.setdefault("axes_dim", (sizes["hidden_size"] // sizes["num_heads"],))
    config = manifest_configs.build(row.name, filled)
    return config, split_transformer(params.shapes(lambda rngs: row.module(config, rngs=rngs)))[component]
