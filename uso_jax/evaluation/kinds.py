# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The kinds of metrics by name."""

import importlib
from collections.abc import Mapping

from uso_jax.errors import InputError
from uso_jax.evaluation.metric import Measure, Metric, Tools, WholeMeasure

KINDS: Mapping[str, tuple[str, str]] = {  # kind -> module and class in uso_jax.evaluation
    "cosine": ("similarity", "Cosine"),
    "text": ("similarity", "TextCosine"),
    "lpips": ("similarity", "Distance"),
    "gram": ("similarity", "Distance"),
    "instruction": ("judged", "Instruction"),
    "presence": ("judged", "Presence"),
    "viescore": ("judged", "VieScore"),
    "identity_weight": ("judged", "IdentityWeight"),
    "scales": ("judged", "Scales"),
    "faces": ("faces", "Faces"),
    "reading": ("ocr", "Reading"),
    "reward": ("reward_model", "Reward"),
    "fid": ("fid", "Fid"),
    "truth": ("truth", "Truth"),
}


def measure(metric: Metric, tools: Tools) -> Measure | WholeMeasure:
    """Make what judges samples; modules are imported as they are needed.

    Raises:
      InputError: a tool or a network is missing.
    """
    if metric.kind not in KINDS:
        raise InputError(f"metric {metric.name!r}: unknown kind {metric.kind!r}; known are {', '.join(KINDS)}")
    module, name = KINDS[metric.kind]
    return getattr(importlib.import_module(f"uso_jax.evaluation.{module}"), name)(metric, tools)
