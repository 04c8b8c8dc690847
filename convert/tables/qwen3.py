# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Table of Qwen3's lower layers (transformers names)."""

from uso_jax.weights.tables.table import DENSE, EMBED, Kind, Row

_RMS: Kind = {".weight": ("/scale", None)}

# fmt: off
ENCODER: tuple[Row, ...] = (
    ("embed_tokens",                          "embed_tokens",                    EMBED),
    *((f"layers.{{i}}.self_attn.{p}_proj",    f"layers/self_attn/{p}_proj",      DENSE) for p in ("q", "k", "v", "o")),
    *((f"layers.{{i}}.self_attn.{p}_norm",    f"layers/self_attn/{p}_norm",      _RMS) for p in ("q", "k")),
    *((f"layers.{{i}}.mlp.{p}_proj",          f"layers/mlp/{p}_proj",            DENSE)
      for p in ("gate", "up", "down")),
    ("layers.{i}.input_layernorm",            "layers/input_layernorm",          _RMS),
    ("layers.{i}.post_attention_layernorm",   "layers/post_attention_layernorm", _RMS),
)
# fmt: on
