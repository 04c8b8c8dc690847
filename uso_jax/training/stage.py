# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A training stage as data: what is trained, on which conditions, by which optimizer, for how long.

The dataclasses check their own values. Checks that need the networks, the rewards or the devices are in
`uso_jax.training.preflight`, so that this module imports nothing of the training stack.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from uso_jax import params
from uso_jax.common.errors import InputError
from uso_jax.data import buckets
from uso_jax.flow import Shift

CONDITIONS = ("content", "style")


@dataclass(frozen=True)
class RewardConfig:
    """Style reward learning: the rewards, the step from which they count, and how a rewarded image is generated.

    Where the paper is silent, the defaults are those of its sister paper UMO (arXiv 2509.06818).
    """

    weights: Mapping[str, float]  # by reward name (uso_jax.training.rewards.REWARDS); the weighted sum is the reward r
    start: int  # S: lambda is 0 in the stage's first S steps
    scale: float = 1.0  # lambda afterwards; 0 in a configuration means no reward
    num_steps: int = 25  # T: steps of the roll-out's schedule
    first: int = 1  # t is drawn from first ... last, counted from the end: T is pure noise, 1 the last step
    last: int = 10
    gradient_steps: int = 1  # K: the jump to the image, and K - 1 steps before it (DRaFT-K)
    guidance: float = 4.0  # embedded scale in the roll-out
    shift: Shift = "flux"  # of the roll-out's schedule
    phi: str = "negative"  # minimised function of r: "negative", -r; "clip", max(margin - r, 0), as in ReFL
    margin: float = 2.0
    anchor: float = 0.0  # weight of the squared velocity difference to the model at step S; 0: no anchor
    blocks: int = 1  # the batch is decoded and rewarded in this many blocks, one after another
    remat_decoder: bool = True
    tile: int = 0  # side in pixels of the tiles in which images are decoded, one after another; 0: whole images
    judges: tuple[str, ...] = ()  # rewards that are only logged, and that stop the stage when they fall
    patience: int = 0  # stop after this many validations in a row with a judge down and the reward up; 0: never
    tolerance: float = 0.02  # a judge is down when it is more than this below its best value
    max_skipped: int = 10  # the run stops after this many steps in a row with a reward that is not finite

    def check(self, stage: "StageConfig") -> None:
        """Raise InputError for values that are invalid by themselves or for the stage's other settings."""
        where = f"stage {stage.name!r}, reward"
        if stage.loss != "flow_matching":
            raise InputError(f"{where}: only the loss 'flow_matching' makes images to reward, not {stage.loss!r}")
        if not self.weights:
            raise InputError(f"{where}: weights are empty; name a reward, for example weights=dict(csd_style=1.0)")
        if both := set(self.judges) & set(self.weights):
            raise InputError(f"{where}: {', '.join(sorted(both))} cannot judge what it rewards")
        if self.phi not in ("negative", "clip"):
            raise InputError(f"{where}: phi must be 'negative' or 'clip', not {self.phi!r}")
        if not 1 <= self.first <= self.last <= self.num_steps - self.gradient_steps + 1 or self.gradient_steps < 1:
            raise InputError(
                f"{where}: 1 <= first <= last <= num_steps - gradient_steps + 1 must hold, not 1 <= {self.first} <="
                f" {self.last} <= {self.num_steps} - {self.gradient_steps} + 1"
            )
        if min(self.start, self.patience, self.anchor, self.tolerance) < 0 or self.max_skipped < 1:
            raise InputError(
                f"{where}: start, patience, anchor and tolerance must be at least 0, max_skipped at least 1"
            )
        micro = stage.batch_size // stage.accumulate
        if self.blocks < 1 or micro % self.blocks:
            raise InputError(
                f"{where}: batch_size / accumulate is {micro}, which does not divide by blocks {self.blocks}"
            )
        if self.patience and not self.judges:
            raise InputError(f"{where}: patience needs at least one of judges to watch")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the rewards and the judges."""
        return (*self.weights, *self.judges)


@dataclass(frozen=True)
class StageConfig:
    """One stage; the paper's two stages and its joint variant differ only in these values."""

    name: str
    loss: str  # one of uso_jax.training.objectives.OBJECTIVES
    steps: int
    train: params.Rules  # (regex over parameter paths, learning-rate multiplier or None for frozen), first match wins
    conditions: tuple[str, ...]  # of "content", "style"; tokens of the others are left out of the sequence
    batch_size: int  # over all devices
    target_size: tuple[int, int]  # pixels, (height, width)
    content_size: tuple[int, int]
    data: Mapping[str, Any]  # optional arguments of the data source, such as task weights; unknown ones are ignored
    learning_rate: float
    warmup_steps: int
    decay: str  # of the learning rate after warm-up: "constant", or "cosine" down to zero at the last step
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    clip_norm: float
    accumulate: int  # micro-batches per step; batch_size is their sum
    ema_decay: float  # 0 keeps no average
    text_dropout: float
    content_dropout: float
    style_dropout: float
    guidance: float  # embedded scale in the flow-matching loss
    shift_mu: float | None  # of the training times; None takes flow.shift_mu of the target's token count
    reward: RewardConfig | None = None
    optimizer: str = "adamw"  # or "muon"
    all_dropout: float = 0.0  # probability of dropping all conditions at once, as classifier-free guidance needs
    clip_cut: float = 0.0  # probability that CLIP reads only the start of a caption, so that T5 must carry the rest
    max_guidance: float = 5.0  # largest scale that the guidance loss draws
    target_aspects: tuple[tuple[int, int], ...] = ()  # (height, width) at 512 x 512; (): target_size alone
    content_aspects: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        where = f"stage {self.name!r}"
        if any(len(aspect) != 2 or min(aspect) < 1 for aspect in (*self.target_aspects, *self.content_aspects)):
            raise InputError(f"{where}: target_aspects and content_aspects are pairs of positive (height, width)")
        if self.steps < 1 or self.batch_size < 1 or self.accumulate < 1:
            raise InputError(f"{where}: steps, batch_size and accumulate must be at least 1")
        if self.batch_size % self.accumulate:
            raise InputError(f"{where}: batch_size {self.batch_size} does not divide by accumulate {self.accumulate}")
        if unknown := set(self.conditions) - set(CONDITIONS):
            raise InputError(f"{where}: unknown conditions {sorted(unknown)}; known are {', '.join(CONDITIONS)}")
        if self.optimizer not in ("adamw", "muon"):
            raise InputError(f"{where}: optimizer must be 'adamw' or 'muon', not {self.optimizer!r}")
        if self.decay not in ("constant", "cosine"):
            raise InputError(f"{where}: decay must be 'constant' or 'cosine', not {self.decay!r}")
        for name in ("text_dropout", "content_dropout", "style_dropout", "all_dropout", "clip_cut", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{where}: {name} must lie between 0 and 1, not {getattr(self, name)}")
        if self.reward is not None:
            self.reward.check(self)

    def check_sizes(self, pixels_per_token: int) -> None:
        """Raise InputError for image sizes that do not divide into whole tokens."""
        sizes = {"target_size": self.target_size}
        if "content" in self.conditions:
            sizes["content_size"] = self.content_size
        for name, size in sizes.items():
            if any(side < pixels_per_token or side % pixels_per_token for side in size):
                raise InputError(
                    f"stage {self.name!r}: {name} {'x'.join(map(str, size))} must be a multiple of"
                    f" {pixels_per_token} pixels, the side of a token"
                )
        if self.reward is not None and (tile := self.reward.tile) and (tile < 0 or tile % (4 * pixels_per_token)):
            raise InputError(
                f"stage {self.name!r}, reward: tile {tile} must be a multiple of {4 * pixels_per_token} pixels, or 0 to"
                " decode whole images"
            )

    def bucket_sizes(self, pixels_per_token: int) -> dict[str, tuple[tuple[int, int], ...]]:
        """Return the (height, width) that batches of this stage may have, for targets and for content images."""
        return {
            "target_sizes": buckets.sizes(self.target_aspects, self.target_size, pixels_per_token),
            "content_sizes": buckets.sizes(self.content_aspects, self.content_size, pixels_per_token),
        }

    def at_size(self, height: int, width: int) -> "StageConfig":
        """Return the stage for a batch whose targets have this size."""
        return dataclasses.replace(self, target_size=(height, width))

    def lr_multipliers(self, paths: Iterable[str]) -> dict[str, float]:
        """Return the learning-rate multiplier of every parameter that this stage trains, by path.

        Raises:
          InputError: the stage trains nothing, or has a reward and trains more than the transformer.
        """
        matched = params.match(self.train, paths, f"stage {self.name!r}, train")
        multipliers = {path: multiplier for path, multiplier in matched.items() if multiplier is not None}
        if not multipliers:
            raise InputError(f"stage {self.name!r} trains nothing; set a multiplier in one of the rules of `train`")
        others = [path for path in multipliers if not path.startswith("transformer/")]
        if self.reward is not None and others:
            raise InputError(
                f"stage {self.name!r} has a reward, so it may train the transformer only, not {others[0]}: a codec, an"
                " encoder or a reward that learns would serve the reward and not the image"
            )
        return multipliers
