# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Table of the T5 encoder (transformers names)."""

from uso_jax.weights.tables.table import DENSE, EMBED, NORM, Row

_BLOCK = "encoder.block.{i}.layer"

# fmt: off
ENCODER: tuple[Row, ...] = (
    ("shared",                             "shared",                      EMBED),
    ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias", "relative_attention_bias", EMBED),
    (f"{_BLOCK}.0.layer_norm",             "block/layer_norm_0",          NORM),
    *((f"{_BLOCK}.0.SelfAttention.{p}",    f"block/SelfAttention/{p}",    DENSE) for p in ("q", "k", "v", "o")),
    (f"{_BLOCK}.1.layer_norm",             "block/layer_norm_1",          NORM),
    *((f"{_BLOCK}.1.DenseReluDense.{p}",   f"block/DenseReluDense/{p}",   DENSE) for p in ("wi_0", "wi_1", "wo")),
    ("encoder.final_layer_norm",           "final_layer_norm",            NORM),
)
# fmt: on

ALIASES = {"encoder.embed_tokens.weight": "shared.weight"}
"""Keys that hold the same tensor as another: files carry either of the two or both, and the table knows the second."""
