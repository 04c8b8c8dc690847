# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of CLIP: one tower or the whole, in transformers' names or in OpenAI's.

`TEXT` and `VISION` are single towers without projection, `CLIP` and `OPENAI` whole models (uso_jax.models.clip.Clip).
Files written by older transformers also hold `{text,vision}_model.embeddings.position_ids`, which count up from 0, and
OpenAI's archives `input_resolution`, `context_length` and `vocab_size`: none of them parameters.
"""

from collections.abc import Sequence

from uso_jax.weights.tables.table import CONV, DENSE, EMBED, IN_PROJ, NORM, PARAM, Kind, Row

_KERNEL: Kind = {"": ("/kernel", None)}  # OpenAI multiplies by bare matrices, so theirs are not transposed
_EMBEDDING: Kind = {"": ("/embedding", None)}
_QKV = ("q", "k", "v")


def under(rows: Sequence[Row], torch: str, flax: str) -> tuple[Row, ...]:
    """Put a table of one tower into a larger one."""
    inside = lambda paths: flax + paths if isinstance(paths, str) else tuple(flax + path for path in paths)
    return tuple((torch + module, inside(paths), kind) for module, paths, kind in rows)


# fmt: off
_LAYERS: tuple[Row, ...] = (
    ("encoder.layers.{i}.layer_norm1",   "layers/layer_norm1",    NORM),
    *((f"encoder.layers.{{i}}.self_attn.{p}_proj", f"layers/self_attn/{p}_proj", DENSE) for p in (*_QKV, "out")),
    ("encoder.layers.{i}.layer_norm2",   "layers/layer_norm2",    NORM),
    ("encoder.layers.{i}.mlp.fc1",       "layers/mlp/in_layer",   DENSE),
    ("encoder.layers.{i}.mlp.fc2",       "layers/mlp/out_layer",  DENSE),
)
TEXT: tuple[Row, ...] = (
    ("embeddings.token_embedding",       "token_embedding",       EMBED),
    ("embeddings.position_embedding",    "position_embedding",    EMBED),
    *_LAYERS,
    ("final_layer_norm",                 "final_layer_norm",      NORM),
)
VISION: tuple[Row, ...] = (
    ("embeddings.class_embedding",       "class_embedding",       PARAM),
    ("embeddings.patch_embedding",       "patch_embedding",       CONV),
    ("embeddings.position_embedding",    "position_embedding",    EMBED),
    ("pre_layrnorm",                     "pre_layrnorm",          NORM),
    *_LAYERS,
    ("post_layernorm",                   "post_layernorm",        NORM),
)
CLIP: tuple[Row, ...] = (
    *under(TEXT,   "text_model.",   "text_model/"),
    *under(VISION, "vision_model.", "vision_model/"),
    ("text_projection",                  "text_model/text_projection",     DENSE),
    ("visual_projection",                "vision_model/visual_projection", DENSE),
    ("logit_scale",                      "logit_scale",           PARAM),
)

_RESBLOCKS: tuple[Row, ...] = (
    ("transformer.resblocks.{i}.ln_1",          "layers/layer_norm1",         NORM),
    ("transformer.resblocks.{i}.attn.in_proj",  tuple(f"layers/self_attn/{p}_proj" for p in _QKV), IN_PROJ),
    ("transformer.resblocks.{i}.attn.out_proj", "layers/self_attn/out_proj",  DENSE),
    ("transformer.resblocks.{i}.ln_2",          "layers/layer_norm2",         NORM),
    ("transformer.resblocks.{i}.mlp.c_fc",      "layers/mlp/in_layer",        DENSE),
    ("transformer.resblocks.{i}.mlp.c_proj",    "layers/mlp/out_layer",       DENSE),
)
OPENAI_VISION: tuple[Row, ...] = (
    ("class_embedding",                  "class_embedding",       PARAM),
    ("conv1",                            "patch_embedding",       CONV),
    ("positional_embedding",             "position_embedding",    _EMBEDDING),
    ("ln_pre",                           "pre_layrnorm",          NORM),
    *_RESBLOCKS,
    ("ln_post",                          "post_layernorm",        NORM),
    ("proj",                             "visual_projection",     _KERNEL),
)
OPENAI_TEXT: tuple[Row, ...] = (
    ("token_embedding",                  "token_embedding",       EMBED),
    ("positional_embedding",             "position_embedding",    _EMBEDDING),
    *_RESBLOCKS,
    ("ln_final",                         "final_layer_norm",      NORM),
    ("text_projection",                  "text_projection",       _KERNEL),
)
OPENAI: tuple[Row, ...] = (
    *under(OPENAI_VISION, "visual.", "vision_model/"),
    *under(OPENAI_TEXT,   "",        "text_model/"),
    ("logit_scale",                      "logit_scale",           PARAM),
)

# fmt: off
CSD: tuple[Row, ...] = (
    *under(OPENAI_VISION, "backbone.", "backbone/"),
    ("last_layer_style",    "last_layer_style",    PARAM),
    ("last_layer_content",  "last_layer_content",  PARAM),
)
