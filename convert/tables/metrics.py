# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of ImageReward (its authors' names) and of FID's Inception (pytorch-fid's)."""

from uso_jax.models.inception import BLOCKS, STEM
from uso_jax.weights.tables.table import CONV, DENSE, EMBED, NORM, Kind, Row

from .clip import under
from .dino import ORIGINAL

_LAYER = "encoder.layer.{i}"
_STATISTICS: Kind = {
    ".weight": ("/scale", None), ".bias": ("/bias", None), ".running_mean": ("/mean", None),
    ".running_var": ("/var", None),
}  # fmt: skip

# fmt: off
_TEXT: tuple[Row, ...] = (
    ("embeddings.word_embeddings",      "word_embeddings",      EMBED),
    ("embeddings.position_embeddings",  "position_embeddings",  EMBED),
    ("embeddings.LayerNorm",            "norm",                 NORM),
    *((f"{_LAYER}.{a}.self.{p}", f"layers/{a}/{p}", DENSE)
      for a in ("attention", "crossattention") for p in ("query", "key", "value")),
    *((f"{_LAYER}.{a}.output.dense", f"layers/{a}/dense", DENSE) for a in ("attention", "crossattention")),
    *((f"{_LAYER}.{a}.output.LayerNorm", f"layers/{a}/norm", NORM) for a in ("attention", "crossattention")),
    (f"{_LAYER}.intermediate.dense",    "layers/mlp/in_layer",  DENSE),
    (f"{_LAYER}.output.dense",          "layers/mlp/out_layer", DENSE),
    (f"{_LAYER}.output.LayerNorm",      "layers/norm",          NORM),
)
_VISION = tuple(row for row in ORIGINAL if row[1] not in ("mask_token", "blocks/ls1", "blocks/ls2"))
IMAGE_REWARD: tuple[Row, ...] = (
    *under(_VISION, "blip.visual_encoder.", "visual_encoder/"),
    *under(_TEXT,   "blip.text_encoder.",   ""),
    *((f"mlp.layers.{place}", f"mlp/{number}", DENSE) for number, place in enumerate((0, 2, 4, 6, 7))),
)
# fmt: on
_CONVS = (*STEM, *(f"{block}/{name}" for block, convs in BLOCKS.items() for name in convs))
INCEPTION: tuple[Row, ...] = tuple(
    row
    for path in _CONVS
    for row in (
        (f"{path.replace('/', '.')}.conv", f"{path}/conv", CONV),
        (f"{path.replace('/', '.')}.bn", f"{path}/bn", _STATISTICS),
    )
)
