# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Curation of triplets (docs/curation.md): any data of configs/uso.py, and the settings of every step.

python scripts/curate.py run --to DIR --config configs/curation.py         drawings and mini's experts
python scripts/curate.py run --to DIR --config configs/curation.py:flux    your images, experts and judge
"""

import pathlib
import runpy
import types
from dataclasses import replace

from uso_jax.curation.config import CurationConfig, CurationRunConfig, ExpertConfig, KeepConfig, ScoreConfig

VARIANTS = {
    "mini": "drawings, with mini's experts (configs/mini_experts.py); minutes on two CPU cores",
    "flux": "experts of FLUX's size; weights and the model that judges are yours to fill in",
}


def get_config(variant: str = "mini") -> CurationRunConfig:
    """Return the configuration of a variant.

    Raises:
      ValueError: the variant is unknown.
    """
    builders = {"mini": mini, "flux": flux}
    if variant not in builders:
        raise ValueError(f"unknown variant {variant!r}; known are {', '.join(builders)}")
    config = _uso().get_config({"mini": "mini32", "flux": "flux_dev"}[variant])
    return CurationRunConfig(**vars(replace(config, variant=f"curation_{variant}")), curation=builders[variant]())


def flux() -> CurationConfig:
    """Curation with experts of FLUX.1's size; weights and the model that judges are yours to fill in."""
    return CurationConfig(
        stylize=ExpertConfig(prompts=dict(preserved="{subject}", shifted="{subject}")),
        destylize=ExpertConfig(
            reference="content",
            prompts=dict(
                preserved="turn it into a realistic photo, {caption}",
                shifted="a realistic photo of {caption}, elsewhere",
            ),
        ),
    )


def mini() -> CurationConfig:
    """Return the settings for mini's experts."""
    few = dict(batch_size=16, settings=dict(num_steps=12))
    return CurationConfig(
        limit=256,
        shard_size=32,
        stylize=ExpertConfig(
            **few, weights="experts/stylize", prompts=dict(preserved="{subject}", shifted="{subject}")
        ),
        destylize=ExpertConfig(
            **few,
            weights="experts/destylize",
            reference="content",
            prompts=dict(preserved="{caption}", shifted="{caption} in another place"),
        ),
        score=ScoreConfig(weights="tests/mini32", subject="siglip_text", size=32),
        keep=KeepConfig(subject=0.36, judge=None),
    )


def _uso() -> types.SimpleNamespace:
    """Load configs/uso.py, which has the sources."""
    return types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("uso.py"))))
