# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Table of CSD (the original's names, without the `module.` prefix that its training left in front of them)."""

from convert.clip import OPENAI_VISION, under
from convert.table import PARAM, Row

# fmt: off
CSD: tuple[Row, ...] = (
    *under(OPENAI_VISION, "backbone.", "backbone/"),
    ("last_layer_style",    "last_layer_style",    PARAM),
    ("last_layer_content",  "last_layer_content",  PARAM),
)
