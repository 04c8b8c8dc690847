# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of the FLUX.2 transformer (black-forest-labs' and diffusers' names); adapters and projector are FLUX.1's."""

from uso_jax.weights.tables.flux import DIFFUSERS_STREAM, RMS_WEIGHT, STREAM, inside
from uso_jax.weights.tables.table import DENSE, RMS, SWAPPED, Row

# Modulations are outside the blocks.
_STREAM = tuple(row for row in STREAM if row[0] != "mod.lin")
_MLP = {"ff.net.0.proj": "ff.linear_in", "ff.net.2": "ff.linear_out"}
_DIFFUSERS_STREAM = tuple(
    (_MLP.get(img, img), _MLP[img].replace("ff.", "ff_context.") if img in _MLP else txt, flax, kind)
    for img, txt, flax, kind in DIFFUSERS_STREAM
    if flax != "mod/lin"
)
_MODULATIONS = ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")

# fmt: off
TRANSFORMER: tuple[Row, ...] = (
    ("img_in",                             "img_in",                        DENSE),
    *((f"{m}_in.{n}",                      f"{m}_in/{n}",                   DENSE)
      for m in ("time", "guidance") for n in ("in_layer", "out_layer")),
    ("txt_in",                             "txt_in",                        DENSE),
    *((f"{name}.lin",                      f"{name}/lin",                   DENSE) for name in _MODULATIONS),
    *((f"double_blocks.{{i}}.{s}_{t}",     f"double_blocks/{s}_{f}",        k)
      for s in ("img", "txt") for t, f, k in _STREAM),
    ("single_blocks.{i}.linear1",          ("single_blocks/linear1_qkv", "single_blocks/linear1_mlp"), DENSE),
    ("single_blocks.{i}.linear2",          "single_blocks/linear2",         DENSE),
    ("single_blocks.{i}.norm.query_norm",  "single_blocks/norm/query_norm", RMS),
    ("single_blocks.{i}.norm.key_norm",    "single_blocks/norm/key_norm",   RMS),
    ("final_layer.linear",                 "final_layer/linear",            DENSE),
    ("final_layer.adaLN_modulation.1",     "final_layer/adaLN_modulation",  DENSE),
)

TRANSFORMER_DIFFUSERS: tuple[Row, ...] = (
    ("x_embedder",                         "img_in",                        DENSE),
    *((f"time_guidance_embed.{t}.{a}",     f"{m}_in/{b}",                   DENSE)
      for t, m in (("timestep_embedder", "time"), ("guidance_embedder", "guidance"))
      for a, b in (("linear_1", "in_layer"), ("linear_2", "out_layer"))),
    ("context_embedder",                   "txt_in",                        DENSE),
    *((f"{name}.linear",                   f"{name}/lin",                   DENSE) for name in _MODULATIONS),
    *((inside("transformer_blocks.{i}", names), f"double_blocks/{s}_{f}",   k)
      for img, txt, f, k in _DIFFUSERS_STREAM for s, names in (("img", img), ("txt", txt))),
    ("single_transformer_blocks.{i}.attn.to_qkv_mlp_proj",
     ("single_blocks/linear1_qkv", "single_blocks/linear1_mlp"),                   DENSE),
    ("single_transformer_blocks.{i}.attn.to_out", "single_blocks/linear2",         DENSE),
    ("single_transformer_blocks.{i}.attn.norm_q", "single_blocks/norm/query_norm", RMS_WEIGHT),
    ("single_transformer_blocks.{i}.attn.norm_k", "single_blocks/norm/key_norm",   RMS_WEIGHT),
    ("proj_out",                           "final_layer/linear",            DENSE),
    ("norm_out.linear",                    "final_layer/adaLN_modulation",  SWAPPED),  # scale before shift
)
# fmt: on
