# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Table of CLIP's text transformer (transformers names, without the `text_model.` prefix).

Files written by older transformers also hold `text_model.embeddings.position_ids`: 0 to 76, not a parameter.
"""

from convert.table import DENSE, EMBED, NORM, Row

_PROJECTIONS = ("q", "k", "v", "out")

# fmt: off
TEXT: tuple[Row, ...] = (
    ("embeddings.token_embedding",       "token_embedding",       EMBED),
    ("embeddings.position_embedding",    "position_embedding",    EMBED),
    ("encoder.layers.{i}.layer_norm1",   "layers/layer_norm1",    NORM),
    *((f"encoder.layers.{{i}}.self_attn.{p}_proj", f"layers/self_attn/{p}_proj", DENSE) for p in _PROJECTIONS),
    ("encoder.layers.{i}.layer_norm2",   "layers/layer_norm2",    NORM),
    ("encoder.layers.{i}.mlp.fc1",       "layers/mlp/in_layer",   DENSE),
    ("encoder.layers.{i}.mlp.fc2",       "layers/mlp/out_layer",  DENSE),
    ("final_layer_norm",                 "final_layer_norm",      NORM),
)
