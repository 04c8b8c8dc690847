# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Ablations of USO's ideas on mini at 32 pixels: the paper's Tables 3 and 4, and further questions.

    python scripts/train.py --config configs/mini_ablations.py:full --config.seed=1 --workdir runs/full-1

Every run ends with the same tables; scripts/compare.py joins those of several seeds.
"""

import pathlib
import runpy
import types
from dataclasses import replace

from uso_jax.training.config import TrainConfig, override
from uso_jax.training.policy import PolicyConfig
from uso_jax.training.stage import BOTH, PROJECTOR, StageConfig, by_name

VARIANTS = {
    "full": "style alignment, then disentanglement, each rewarded for the paper's last share of its steps",
    "no_reward": "w/o SRL: the same without the reward",
    "no_alignment": "w/o SAT: projector, SigLIP and adapters together from the start, for as many steps in total",
    "no_disentangled": "w/o DE: the autoencoder encodes both references, for as many steps",
    "hierarchical": "style alignment alone, at the projector's best learning rate (Table 4)",
    "resampler": "the same with a resampler as projector",
    "mlp": "the same with an MLP as projector",
    "hierarchical_siglip": "hierarchical with SigLIP trained too",
    "resampler_siglip": "resampler with SigLIP trained too",
    "mlp_siglip": "mlp with SigLIP trained too",
    "refl": "no_reward, then the gradient of CSD as reward, on as many images as nft has",
    "nft": "no_reward, then DiffusionNFT with CSD as score, on as many images as full has with its reward",
    "nft_own_noise": "nft with separate noises and times for every image",
    "nft_exact": "nft with the exact style verdict as score, which has no gradient",
    "nft_both": "nft with the exact verdicts of style and content",
    "nft_guarded": "nft with CSD for the style and the exact verdict of the content",
    "grpo": "nft by Flow-GRPO",
    "isolated": "no_reward with content images that attend to themselves only: sampling keeps their keys and values",
    "same_ids": "no_reward with content tokens at the target's own positions",
    "all_weights": "no_reward with the whole transformer trained instead of adapters",
}
NFT = PolicyConfig(levels=4, common_noise=True)
EXACT = replace(NFT, weights={}, judges=("csd_style",))
POLICIES = {
    "nft": NFT,
    "nft_own_noise": replace(NFT, common_noise=False),
    "nft_exact": replace(EXACT, black_boxes={"true_style": 1.0}),
    "nft_both": replace(EXACT, black_boxes={"true_style": 1.0, "true_content": 1.0}),
    "nft_guarded": replace(NFT, black_boxes={"true_content": 1.0}),
    "grpo": PolicyConfig(method="grpo"),
}
IMAGES = 7_520  # of a stage that learns from a reward after training: `full` makes as many in its last steps
PROJECTORS = {"hierarchical": 2e-2, "resampler": 8e-3, "mlp": 3e-3}  # best learning rate of those tried
SIGLIP = (r"siglip/.*", 0.1)  # learning rate relative to that of parameters that start from random numbers


def get_config(variant: str = "full") -> TrainConfig:
    """Return the configuration of one variant.

    Raises:
      ValueError: the variant is unknown.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known are {', '.join(VARIANTS)}")
    uso = _uso()
    config = uso.get_config("mini32")
    align, both = (replace(stage, reward=None) for stage in config.run_stages)
    steps = align.steps + both.steps
    changes = {"variant": f"mini_{variant}", "evaluation.num_triplets": 256, "evaluation.tables": uso.TABLES}
    kind, _, tower = variant.partition("_")
    stages = (align, both)
    if variant == "full":
        changes["heldout.grid_every"] = 100
        stages = (_rewarded(uso, align, 16 / 23), _rewarded(uso, both, 18 / 21))
    elif variant == "no_alignment":
        # SigLIP may not be trained with a reward, so the reward has its own stage, at `full`'s last learning rate.
        last = round(steps * 3 / 21)
        stages = (
            replace(both, name="joint", steps=steps - last, train=(SIGLIP, *BOTH)),
            replace(both, steps=last, train=BOTH, learning_rate=1e-4, reward=uso.MINI_REWARD),
        )
    elif variant == "no_disentangled":
        changes |= {"model.style_encoder": "autoencoder", "model.transformer.projector": None}
        stages = (_rewarded(uso, replace(both, steps=steps), 18 / 21),)
    elif kind in PROJECTORS:
        changes["evaluation.tables"] = {name: uso.TABLES[name] for name in ("main", "style")}
        changes["model.transformer.projector.kind"] = kind
        train = (SIGLIP, *PROJECTOR) if tower else PROJECTOR
        stages = (replace(align, learning_rate=PROJECTORS[kind], train=train),)
    elif variant == "refl" or variant in POLICIES:
        changes["evaluation.tables"] = {"main": uso.TABLES["main"]}
        last = _with_gradient(uso, both) if variant == "refl" else _with_policy(both, POLICIES[variant])
        stages = (align, both, last)
    elif variant == "isolated":
        stages = (align, replace(both, isolated="content"))
    elif variant == "same_ids":
        changes["model.reference_offset"] = "o"
    elif variant == "all_weights":
        train = ((r"transformer/(?!feature_embedder|.*/processor).*", 0.25), (r".*", None))
        stages = (align, replace(both, train=train))
    return override(config, changes | {"stages": by_name(*stages), "run": tuple(stage.name for stage in stages)})


def _rewarded(uso: types.SimpleNamespace, stage: StageConfig, share: float) -> StageConfig:
    """Return a stage with the reward after a share of its steps, the paper's 16,000 of 23,000 or 18,000 of 21,000."""
    return replace(stage, reward=replace(uso.MINI_REWARD, start=round(share * stage.steps)))


def _with_gradient(uso: types.SimpleNamespace, stage: StageConfig) -> StageConfig:
    """Return a stage that goes on from the gradient of the reward of IMAGES images."""
    reward, steps = replace(uso.MINI_REWARD, start=0), IMAGES // stage.batch_size
    return replace(stage, name="reward", steps=steps, learning_rate=1e-4, decay="constant", reward=reward)


def _with_policy(stage: StageConfig, policy: PolicyConfig) -> StageConfig:
    """Return a stage that goes on from the policy's scores of IMAGES images.

    A step of DiffusionNFT trains on a whole round, whose advantages sum to zero.
    """
    policy = replace(policy, judges=(*policy.judges, "judge_style", "judge_content"), guidance=3.0, num_steps=8)
    data = dict(tasks=dict(style_subject=1.0), preserved=1.0, style_words=0.0, plain=1.0)  # what exact verdicts need
    if policy.method == "nft":
        stage = replace(stage, batch_size=policy.images, learning_rate=1e-3, warmup_steps=5)
    else:
        stage = replace(stage, learning_rate=3e-4)
    steps = IMAGES // policy.images * policy.steps_per_round(stage.batch_size)
    return replace(stage, name="policy", steps=steps, decay="constant", data=data, policy=policy)


def _uso() -> types.SimpleNamespace:
    """Load configs/uso.py, which has mini."""
    return types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("uso.py"))))
