# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The settings of a stage that learns from scores of its images, without gradients of what scores them.

Training goes in rounds. A round generates `group` images for each of `prompts` examples with the old policy, scores
them, and trains on them (uso_jax.training.rollouts); then the old policy moves towards the trained one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp

from uso_jax.common.errors import InputError
from uso_jax.flow import Shift
from uso_jax.vlm.config import VlmConfig

METHODS = ("nft", "awm", "grpo")
COMBINATIONS = ("parts", "sum", "product")
SPREADS = ("round", "group")
ADVANTAGES, COUNTED = "rollout_advantages", "rollout_counted"
"""Names of what a roll-out adds to a batch: each image's advantage, and whether it has all scores, 0 or 1."""


@dataclass(frozen=True)
class PolicyConfig:
    """Roll-outs, how scores become advantages, and the loss (uso_jax.training.objectives.nft, .awm and .grpo)."""

    method: str = "nft"  # one of METHODS
    weights: Mapping[str, float] = field(default_factory=lambda: {"csd_style": 1.0})
    """Weight of each reward by name (uso_jax.training.rewards.REWARDS)."""
    black_boxes: Mapping[str, float] = field(default_factory=dict)
    """Weight of each score that is no network, by name (uso_jax.training.black_boxes)."""
    combine: str = "parts"
    """How several scores become one, one of COMBINATIONS. "parts" normalises each before the weighted sum, so that no
    score outweighs another by its scale; "product" of powers (the weights) is high only where all scores are."""
    prompts: int = 8  # examples in a round
    group: int = 8  # images of an example, which are compared with each other
    epochs: int = 1  # passes over the images of a round
    sample_batch: int = 0  # images that are generated at once; 0: the stage's batch_size
    num_steps: int = 10  # Euler steps of an image
    guidance: float = 4.0  # embedded scale, in roll-outs and in training; or, without embedding, of a second pass
    shift: Shift = "flux"  # time shift of the sampling schedule
    spread: str = "round"  # images whose standard deviation advantages are divided by, one of SPREADS
    clip: float = 5.0  # largest advantage that counts
    beta: float = 1.0  # how far the implicit policies lie from the old one
    noise: float = 0.7  # strength of the noise in stochastic steps, for "grpo"
    window: tuple[int, int] = (1, 2)  # first stochastic step and their number, for "grpo"
    levels: int = 1  # noise levels at which a step trains every image, for "nft" and "awm"
    common_noise: bool = False
    """One noise for all images of a step at each level, for "nft" and "awm". What a noise does to all images alike
    cancels then, because advantages sum to zero."""
    ratio_clip: float = 1e-4  # how far the ratio of densities may leave 1, for "grpo" and "awm"
    anchor: float = 0.0  # weight of the squared velocity difference to the model before the stage; 0: none
    old_flat: int = 0  # rounds at first after which the old policy becomes the trained one
    old_rate: float = 0.001  # growth of the old policy's share a round after that
    old_most: float = 0.5  # largest share of the old policy
    judges: tuple[
        str, ...
    ] = ()  # rewards that are only measured, on held-out images, and stop the stage when they fall
    patience: int = 0
    """Judgements in a row with a judge down and the rewards up before the stage ends; 0: never."""
    tolerance: float = 0.02  # how far a judge may fall below its best before it counts as down
    vlm: VlmConfig = VlmConfig()  # the model that black boxes called vlm_subject, vlm_style and vlm_prompt ask
    keep_images: bool = True  # keep every image of every round in WORKDIR/rollouts, not only the scores

    def check(self, where: str, batch_size: int) -> None:
        """Raise InputError for values that are invalid by themselves or for a stage's batch size."""
        where = f"{where}, policy"
        if not self.scores:
            raise InputError(f"{where}: weights are empty; name a reward, for example weights=dict(csd_style=1.0)")
        if both := set(self.judges) & set(self.weights):
            raise InputError(f"{where}: {', '.join(sorted(both))} cannot judge what it rewards")
        for name, known in (("method", METHODS), ("combine", COMBINATIONS), ("spread", SPREADS)):
            if getattr(self, name) not in known:
                raise InputError(f"{where}: {name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        if self.combine == "product" and min(self.scores.values()) < 0:
            raise InputError(f"{where}: weights must not be negative where scores are multiplied")
        if min(self.prompts, self.epochs, self.num_steps) < 1 or self.group < 2:
            raise InputError(f"{where}: prompts, epochs and num_steps must be at least 1, group at least 2")
        for name, size in (("batch_size", batch_size), ("sample_batch", self.sample_batch or batch_size)):
            if size < 1 or self.images % size:
                raise InputError(
                    f"{where}: a round has prompts x group = {self.images} images, which must be a multiple of"
                    f" {name} {size}"
                )
        if self.clip <= 0 or self.beta <= 0 or min(self.anchor, self.old_flat, self.old_rate) < 0:
            raise InputError(f"{where}: clip and beta must be positive, anchor, old_flat and old_rate not negative")
        if self.levels < 1:
            raise InputError(f"{where}: levels must be at least 1, not {self.levels}")
        if self.method == "grpo" and (self.levels > 1 or self.common_noise):
            raise InputError(
                f"{where}: grpo trains at the noise of its trajectories; leave out levels and common_noise"
            )
        first, count = self.window
        if self.method == "grpo" and (first < 0 or count < 1 or first + count > self.num_steps - 1):
            raise InputError(
                f"{where}: window {self.window} must lie before the last of {self.num_steps} steps, which ends in an"
                " image without noise"
            )
        if min(self.noise, self.ratio_clip) <= 0:
            raise InputError(f"{where}: noise and ratio_clip must be positive")
        if self.patience and not (self.judges and self.weights):
            raise InputError(f"{where}: patience compares judges with weights; name at least one of each")
        if not 0 <= self.old_most < 1:
            raise InputError(f"{where}: old_most must be at least 0 and below 1, or the old policy never moves")

    @property
    def start(self) -> int:
        """Steps of the stage before the first one that scores decide, as `RewardConfig.start`."""
        return 0

    @property
    def images(self) -> int:
        """Images in a round."""
        return self.prompts * self.group

    def steps_per_round(self, batch_size: int) -> int:
        """Return the train steps between two roll-outs."""
        return self.images * self.epochs // batch_size

    @property
    def scores(self) -> dict[str, float]:
        """Weight of each score by name, rewards first."""
        return {**self.weights, **self.black_boxes}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the rewards and the judges, which are networks."""
        return (*self.weights, *self.judges)


def update_old(config: PolicyConfig, old: Mapping[str, Any], trained: Mapping[str, Any], rounds: Any) -> dict[str, Any]:
    """Return the trained parameters of the old policy after a number of rounds, `nft` Eq. (7)."""
    share = jnp.clip((rounds - config.old_flat) * config.old_rate, 0.0, config.old_most)
    return {path: share * value + (1 - share) * trained[path] for path, value in old.items()}
