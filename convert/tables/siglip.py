# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Table of the SigLIP vision tower (transformers names, without the `vision_model.` prefix)."""

from uso_jax.weights.tables.table import CONV, DENSE, EMBED, IN_PROJ, NORM, PARAM, Row

# fmt: off
VISION: tuple[Row, ...] = (
    ("embeddings.patch_embedding",         "patch_embedding",           CONV),
    ("embeddings.position_embedding",      "position_embedding",        EMBED),
    ("encoder.layers.{i}.layer_norm1",     "layers/layer_norm1",        NORM),
    *((f"encoder.layers.{{i}}.self_attn.{p}_proj", f"layers/self_attn/{p}_proj", DENSE) for p in ("q", "k", "v", "out")),
    ("encoder.layers.{i}.layer_norm2",     "layers/layer_norm2",        NORM),
    ("encoder.layers.{i}.mlp.fc1",         "layers/mlp/in_layer",       DENSE),
    ("encoder.layers.{i}.mlp.fc2",         "layers/mlp/out_layer",      DENSE),
    ("post_layernorm",                     "post_layernorm",            NORM),
    ("head.probe",                         "head/probe",                PARAM),
    ("head.attention.in_proj",             ("head/attention/q_proj", "head/attention/k_proj", "head/attention/v_proj"), IN_PROJ),
    ("head.attention.out_proj",            "head/attention/out_proj",   DENSE),
    ("head.layernorm",                     "head/layernorm",            NORM),
    ("head.mlp.fc1",                       "head/mlp/in_layer",         DENSE),
    ("head.mlp.fc2",                       "head/mlp/out_layer",        DENSE),
)
