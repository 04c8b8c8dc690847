# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of the FLUX transformer (black-forest-labs names) and of USO's adapters and projector."""

from convert.table import DENSE, NORM, RMS, Row

# fmt: off
_STREAM = (
    ("mod.lin",              "mod/lin",              DENSE),
    ("attn.qkv",             "attn/qkv",             DENSE),
    ("attn.norm.query_norm", "attn/norm/query_norm", RMS),
    ("attn.norm.key_norm",   "attn/norm/key_norm",   RMS),
    ("attn.proj",            "attn/proj",            DENSE),
    ("mlp.0",                "mlp/in_layer",         DENSE),
    ("mlp.2",                "mlp/out_layer",        DENSE),
)

TRANSFORMER: tuple[Row, ...] = (
    ("img_in",                             "img_in",                        DENSE),
    *((f"{m}_in.{l}",                      f"{m}_in/{l}",                   DENSE)
      for m in ("time", "vector", "guidance") for l in ("in_layer", "out_layer")),
    ("txt_in",                             "txt_in",                        DENSE),
    *((f"double_blocks.{{i}}.{s}_{t}",     f"double_blocks/{s}_{f}",        k) for s in ("img", "txt") for t, f, k in _STREAM),
    ("single_blocks.{i}.modulation.lin",   "single_blocks/modulation/lin",  DENSE),
    ("single_blocks.{i}.linear1",          ("single_blocks/linear1_qkv", "single_blocks/linear1_mlp"), DENSE),
    ("single_blocks.{i}.linear2",          "single_blocks/linear2",         DENSE),
    ("single_blocks.{i}.norm.query_norm",  "single_blocks/norm/query_norm", RMS),
    ("single_blocks.{i}.norm.key_norm",    "single_blocks/norm/key_norm",   RMS),
    ("final_layer.linear",                 "final_layer/linear",            DENSE),
    ("final_layer.adaLN_modulation.1",     "final_layer/adaLN_modulation",  DENSE),
)

LORA: tuple[Row, ...] = tuple(
    (f"{blocks}.{{i}}.processor.{adapter}.{half}", f"{blocks}/processor/{adapter}/{half}", DENSE)
    for blocks, adapters in (
        ("double_blocks", ("qkv_lora1", "qkv_lora2", "proj_lora1", "proj_lora2")),
        ("single_blocks", ("qkv_lora", "proj_lora")),
    )
    for adapter in adapters
    for half in ("down", "up")
)

PROJECTOR: tuple[Row, ...] = tuple(
    (f"feature_embedder.{level}_{torch}", f"feature_embedder/{level}_{flax}", kind)
    for level in ("high", "mid", "low")
    for torch, flax, kind in (
        ("embedding_linear.0", "embedding_linear", DENSE),
        ("layer_norm",         "layer_norm",       NORM),
        ("projection",         "projection",       DENSE),
    )
)
