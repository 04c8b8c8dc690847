# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The two experts that curation needs, in small: adapters of mini that go from a stylised image to its references.

    python scripts/train.py --config configs/mini_experts.py:stylize --workdir runs/stylize
    python scripts/train.py --config configs/mini_experts.py:destylize --workdir runs/destylize

    stylize      style image -> another subject, which the prompt names, in its style
    destylize    stylised image as content image -> the subject, which the prompt names, in its plain look

Each ends as a weights directory of its own, which scripts/curate.py reads (docs/curation.md):

    cp -r uso_jax/mini/weights experts/stylize
    python -m convert pack runs/stylize --to experts/stylize
"""

import pathlib
import runpy
import types

from ml_collections import ConfigDict


def get_config(variant: str = "stylize") -> ConfigDict:
    """Give the configuration of one expert's training."""
    uso = _uso()
    small = dict(
        target_size=(32, 32), content_size=(32, 32), batch_size=16, warmup_steps=50, betas=(0.9, 0.99), decay="cosine"
    )
    stages = dict(
        stylize=uso.stage(
            **small,
            steps=4000,
            train=uso.BOTH,
            conditions=("style",),
            data=dict(tasks=dict(style=1.0), style_words=0.0),
            learning_rate=2e-3,
        ),
        destylize=uso.stage(
            **small,
            steps=4000,
            train=uso.LORA,
            conditions=("content",),
            data=dict(tasks=dict(style_subject=1.0), style_words=0.0, empty_prompt=0.0, swapped=True),
            learning_rate=2e-3,
        ),
    )
    if variant not in stages:
        raise ValueError(f"unknown variant {variant!r}; known are {', '.join(stages)}")
    config = uso.get_config("mini")
    with config.unlocked():
        config.variant = f"mini_{variant}"
        config.run, config.stages = (variant,), ConfigDict({variant: stages[variant]})
        # The tables judge how a style arrives on a content image, which is neither expert's work.
        del config.evaluation
    return config


def _uso() -> types.SimpleNamespace:
    """Load configs/uso.py, which has mini's sizes."""
    return types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("uso.py"))))
