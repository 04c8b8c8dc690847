# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Small versions of the two experts that curation needs: adapters of mini from a stylised image to its references.

    python scripts/train.py --config configs/mini_experts.py:stylize --workdir runs/stylize
    python scripts/train.py --config configs/mini_experts.py:destylize --workdir runs/destylize

Each run is packed into a weights directory, which scripts/curate.py reads (docs/curation.md):

    cp -r tests/mini32 experts/stylize
    python -m convert pack runs/stylize --to experts/stylize
"""

import pathlib
import runpy
import types
from dataclasses import replace

from uso_jax.training.config import TrainConfig
from uso_jax.training.stage import BOTH, LORA, StageConfig, by_name

VARIANTS = {
    "stylize": "style image -> another subject, which the prompt names, in its style",
    "destylize": "stylised image as content image -> the subject, which the prompt names, in its plain look",
}


def get_config(variant: str = "stylize") -> TrainConfig:
    """Return the configuration of one expert's training.

    Raises:
      ValueError: the variant is unknown.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known are {', '.join(VARIANTS)}")
    few = dict(
        steps=4000,
        target_size=(32, 32),
        content_size=(32, 32),
        warmup_steps=50,
        betas=(0.9, 0.99),
        decay="cosine",
        learning_rate=2e-3,
    )
    if variant == "stylize":
        data = dict(tasks=dict(style=1.0), style_words=0.0)
        stage = StageConfig(variant, **few, train=BOTH, conditions=("style",), data=data)
    else:
        data = dict(tasks=dict(style_subject=1.0), style_words=0.0, empty_prompt=0.0, swapped=True)
        stage = StageConfig(variant, **few, train=LORA, conditions=("content",), data=data)
    # No evaluation: its tables measure how a style is applied to a content image, which neither expert does.
    changes = dict(variant=f"mini_{variant}", run=(variant,), stages=by_name(stage), evaluation=None)
    return replace(_uso().get_config("mini32"), **changes)


def _uso() -> types.SimpleNamespace:
    """Load configs/uso.py, which has mini."""
    return types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("uso.py"))))
