# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of the FLUX transformer (black-forest-labs' and diffusers' names) and of USO's adapters and projector."""

from uso_jax.weights.tables.table import DENSE, NORM, RMS, SWAPPED, Kind, Row

RMS_WEIGHT: Kind = {".weight": ("/scale", None)}

# fmt: off
STREAM = (
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
    *((f"{m}_in.{n}",                      f"{m}_in/{n}",                   DENSE)
      for m in ("time", "vector", "guidance") for n in ("in_layer", "out_layer")),
    ("txt_in",                             "txt_in",                        DENSE),
    *((f"double_blocks.{{i}}.{s}_{t}",     f"double_blocks/{s}_{f}",        k) for s in ("img", "txt") for t, f, k in STREAM),
    ("single_blocks.{i}.modulation.lin",   "single_blocks/modulation/lin",  DENSE),
    ("single_blocks.{i}.linear1",          ("single_blocks/linear1_qkv", "single_blocks/linear1_mlp"), DENSE),
    ("single_blocks.{i}.linear2",          "single_blocks/linear2",         DENSE),
    ("single_blocks.{i}.norm.query_norm",  "single_blocks/norm/query_norm", RMS),
    ("single_blocks.{i}.norm.key_norm",    "single_blocks/norm/key_norm",   RMS),
    ("final_layer.linear",                 "final_layer/linear",            DENSE),
    ("final_layer.adaLN_modulation.1",     "final_layer/adaLN_modulation",  DENSE),
)

DIFFUSERS_STREAM = (  # diffusers' names for the image and the text stream
    ("norm1.linear",                  "norm1_context.linear",         "mod/lin",              DENSE),
    (("attn.to_q", "attn.to_k", "attn.to_v"),
     ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),       "attn/qkv",             DENSE),
    ("attn.norm_q",                   "attn.norm_added_q",            "attn/norm/query_norm", RMS_WEIGHT),
    ("attn.norm_k",                   "attn.norm_added_k",            "attn/norm/key_norm",   RMS_WEIGHT),
    ("attn.to_out.0",                 "attn.to_add_out",              "attn/proj",            DENSE),
    ("ff.net.0.proj",                 "ff_context.net.0.proj",        "mlp/in_layer",         DENSE),
    ("ff.net.2",                      "ff_context.net.2",             "mlp/out_layer",        DENSE),
)


def inside(block: str, names: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Put a block's name before one module name or each of several."""
    return f"{block}.{names}" if isinstance(names, str) else tuple(f"{block}.{name}" for name in names)


TRANSFORMER_DIFFUSERS: tuple[Row, ...] = (
    ("x_embedder",                         "img_in",                        DENSE),
    *((f"time_text_embed.{t}.{a}",         f"{m}_in/{b}",                   DENSE)
      for t, m in (("timestep_embedder", "time"), ("text_embedder", "vector"), ("guidance_embedder", "guidance"))
      for a, b in (("linear_1", "in_layer"), ("linear_2", "out_layer"))),
    ("context_embedder",                   "txt_in",                        DENSE),
    *((inside("transformer_blocks.{i}", names), f"double_blocks/{s}_{f}",  k)
      for img, txt, f, k in DIFFUSERS_STREAM for s, names in (("img", img), ("txt", txt))),
    ("single_transformer_blocks.{i}.norm.linear", "single_blocks/modulation/lin",  DENSE),
    (inside("single_transformer_blocks.{i}.attn", ("to_q", "to_k", "to_v")), "single_blocks/linear1_qkv", DENSE),
    ("single_transformer_blocks.{i}.proj_mlp",    "single_blocks/linear1_mlp",     DENSE),
    ("single_transformer_blocks.{i}.proj_out",    "single_blocks/linear2",         DENSE),
    ("single_transformer_blocks.{i}.attn.norm_q", "single_blocks/norm/query_norm", RMS_WEIGHT),
    ("single_transformer_blocks.{i}.attn.norm_k", "single_blocks/norm/key_norm",   RMS_WEIGHT),
    ("proj_out",                           "final_layer/linear",            DENSE),
    ("norm_out.linear",                    "final_layer/adaLN_modulation",  SWAPPED),  # scale before shift
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
