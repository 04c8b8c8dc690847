# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What each of USO's ideas is worth to mini: the paper's Tables 3 and 4, and questions of this project's own.

    python scripts/train.py --config configs/mini_ablations.py:full --config.seed=1 --workdir runs/full-1

    full                    style alignment, then disentanglement, rewarded in the paper's last shares of either
    no_reward               w/o SRL: the same without the reward
    no_alignment            w/o SAT: projector, SigLIP and adapters together from the start, in as many steps in all
    no_disentangled         w/o DE: the autoencoder encodes both references, in as many steps
    hierarchical resampler mlp          style alignment alone, by projector, each at its own rate (Table 4)
    hierarchical_siglip resampler_siglip mlp_siglip     the same, SigLIP trained along
    same_ids                no_reward with content tokens at the target's own positions
    all_weights             no_reward with all of the transformer trained, not adapters

Every run ends with the same tables; scripts/compare.py joins those of several seeds.
"""

import pathlib
import runpy
import types

from ml_collections import ConfigDict

PROJECTORS = {"hierarchical": 2e-2, "resampler": 8e-3, "mlp": 3e-3}  # the best learning rate of each, of those tried
SIGLIP = (r"siglip/.*", 0.1)  # its rate relative to what starts from random numbers


def get_config(variant: str = "full") -> ConfigDict:
    """Give the configuration of one variant."""
    uso = _uso()
    config = uso.get_config("mini")
    align, both = config.stages.style_alignment, config.stages.disentanglement
    steps = align.steps + both.steps
    with config.unlocked():
        align.reward = both.reward = None
        config.variant = f"mini_{variant}"
        config.evaluation.num_triplets = 256
        config.evaluation.tables = uso.TABLES
        kind, _, tower = variant.partition("_")
        if variant == "full":
            config.heldout.grid_every = 100
            _reward(uso, align, both)
        elif variant == "no_alignment":
            # The reward may not teach SigLIP, so it has a stage of its own, at the rate that is left in `full`.
            config.run = ("joint", "disentanglement")
            joint = config.stages.joint = both.copy_and_resolve_references()
            both.steps = round(steps * 3 / 21)
            joint.steps, joint.train = steps - both.steps, (SIGLIP, *uso.BOTH)
            both.train, both.learning_rate = uso.BOTH, 1e-4
            both.reward = ConfigDict(uso.reward(**uso.MINI_REWARD))
        elif variant == "no_disentangled":
            config.run = ("disentanglement",)
            config.model.style_encoder, config.model.transformer.projector = "autoencoder", None
            both.steps = steps
            _reward(uso, both)
        elif kind in PROJECTORS and tower in ("", "siglip"):
            config.run = ("style_alignment",)
            config.evaluation.tables = {name: uso.TABLES[name] for name in ("main", "style")}
            config.model.transformer.projector.kind, align.learning_rate = kind, PROJECTORS[kind]
            if tower:
                align.train = (SIGLIP, *uso.PROJECTOR)
        elif variant == "same_ids":
            config.model.reference_offset = "o"
        elif variant == "all_weights":
            both.train = ((r"transformer/(?!feature_embedder|.*/processor).*", 0.25), (r".*", None))
        elif variant != "no_reward":
            raise ValueError(f"unknown variant {variant!r}; see the top of configs/mini_ablations.py")
    return config


def _reward(uso: types.SimpleNamespace, *stages: ConfigDict) -> None:
    """Reward the last part of each stage, as long as the paper's: 7,000 of 23,000 and 3,000 of 21,000 steps."""
    shares = {"style_alignment": 16 / 23, "disentanglement": 18 / 21}
    names = ("style_alignment", "disentanglement")[-len(stages) :]
    for name, stage in zip(names, stages, strict=True):
        start = round(shares[name] * stage.steps)
        stage.reward = ConfigDict(uso.reward(start=start, **uso.MINI_REWARD))


def _uso() -> types.SimpleNamespace:
    """Load configs/uso.py, which has mini's sizes."""
    return types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("uso.py"))))
