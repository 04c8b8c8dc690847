# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of DINO and DINOv2: the original names, and those of the files that transformers writes.

`ORIGINAL` fits both networks, and timm's files of DINO too; transformers names the layers of its `ViTModel` and its
`Dinov2Model` differently, in files longer than in memory.
"""

from uso_jax.weights.tables.table import CONV, DENSE, NORM, PARAM, Row

_QKV = ("q_proj", "k_proj", "v_proj")

# fmt: off
ORIGINAL: tuple[Row, ...] = (
    ("cls_token",                   "cls_token",             PARAM),
    ("pos_embed",                   "pos_embed",             PARAM),
    ("mask_token",                  "mask_token",            PARAM),
    ("patch_embed.proj",            "patch_embed",           CONV),
    ("blocks.{i}.norm1",            "blocks/norm1",          NORM),
    ("blocks.{i}.attn.qkv",         tuple(f"blocks/attn/{p}" for p in _QKV), DENSE),
    ("blocks.{i}.attn.proj",        "blocks/attn/out_proj",  DENSE),
    ("blocks.{i}.ls1.gamma",        "blocks/ls1",            PARAM),
    ("blocks.{i}.norm2",            "blocks/norm2",          NORM),
    ("blocks.{i}.mlp.fc1",          "blocks/mlp/in_layer",   DENSE),
    ("blocks.{i}.mlp.fc2",          "blocks/mlp/out_layer",  DENSE),
    ("blocks.{i}.ls2.gamma",        "blocks/ls2",            PARAM),
    ("norm",                        "norm",                  NORM),
)

_LAYER = "encoder.layer.{i}"
_EMBEDDINGS: tuple[Row, ...] = (
    ("embeddings.cls_token",                    "cls_token",    PARAM),
    ("embeddings.mask_token",                   "mask_token",   PARAM),
    ("embeddings.position_embeddings",          "pos_embed",    PARAM),
    ("embeddings.patch_embeddings.projection",  "patch_embed",  CONV),
    ("layernorm",                               "norm",         NORM),
)
_ATTENTION: tuple[Row, ...] = (
    (f"{_LAYER}.attention.attention.query",     "blocks/attn/q_proj",     DENSE),
    (f"{_LAYER}.attention.attention.key",       "blocks/attn/k_proj",     DENSE),
    (f"{_LAYER}.attention.attention.value",     "blocks/attn/v_proj",     DENSE),
    (f"{_LAYER}.attention.output.dense",        "blocks/attn/out_proj",   DENSE),
)
VIT: tuple[Row, ...] = (
    *_EMBEDDINGS,
    *_ATTENTION,
    (f"{_LAYER}.layernorm_before",              "blocks/norm1",           NORM),
    (f"{_LAYER}.layernorm_after",               "blocks/norm2",           NORM),
    (f"{_LAYER}.intermediate.dense",            "blocks/mlp/in_layer",    DENSE),
    (f"{_LAYER}.output.dense",                  "blocks/mlp/out_layer",   DENSE),
)
DINOV2: tuple[Row, ...] = (
    *_EMBEDDINGS,
    *_ATTENTION,
    (f"{_LAYER}.norm1",                         "blocks/norm1",           NORM),
    (f"{_LAYER}.layer_scale1.lambda1",          "blocks/ls1",             PARAM),
    (f"{_LAYER}.norm2",                         "blocks/norm2",           NORM),
    (f"{_LAYER}.mlp.fc1",                       "blocks/mlp/in_layer",    DENSE),
    (f"{_LAYER}.mlp.fc2",                       "blocks/mlp/out_layer",   DENSE),
    (f"{_LAYER}.layer_scale2.lambda1",          "blocks/ls2",             PARAM),
)
