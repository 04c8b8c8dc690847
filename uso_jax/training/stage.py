# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A training stage as data: what is trained, on which conditions, by which optimizer, for how long.

The dataclasses check their own values. Checks that need the networks, the rewards or the devices are in
`uso_jax.training.preflight`, so that this module imports nothing of the training stack.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from uso_jax import params
from uso_jax.common.errors import InputError
from uso_jax.data import buckets
from uso_jax.flow import Isolated, Shift
from uso_jax.training.policy import PolicyConfig

DISTILLATION = "distillation"  # the loss that has a teacher
CONDITIONS = ("content", "style")
OPTIMIZERS = ("adamw", "muon", "adafactor", "lion", "prodigy", "schedule_free")
SCHEDULES = ("constant", "linear", "cosine", "cosine_restarts", "polynomial")
TIMESTEPS = ("uniform", "logit_normal", "mode")
LOSS_WEIGHTS = ("none", "cosmap", "min_snr")
# Values of StageConfig.train: what USO adds to the transformer, alone and together.
PROJECTOR: params.Rules = ((r"transformer/feature_embedder/.*", 1.0), (r".*", None))
LORA: params.Rules = ((r"transformer/.*/processor/.*", 1.0), (r".*", None))
BOTH: params.Rules = ((r"transformer/(feature_embedder|.*/processor)/.*", 1.0), (r".*", None))


@dataclass(frozen=True)
class RewardConfig:
    """Style reward learning: the rewards, the step from which they count, and how a rewarded image is generated.

    Where the paper is silent, the defaults are those of its sister paper UMO (arXiv 2509.06818).
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {"csd_style": 1.0})
    """Weight of each reward by name (uso_jax.training.rewards.REWARDS); their weighted sum is the reward r."""
    start: int = 0  # steps of the stage before the first one with a reward; the paper's S
    scale: float = 1.0  # weight of the reward in the loss, the paper's lambda; 0: no reward
    num_steps: int = 25  # steps of the roll-out's schedule; the paper's T
    first: int = 1  # earliest step at which the roll-out stops, counted from the end: T is pure noise, 1 the last step
    last: int = 10  # latest step at which the roll-out stops; the step is drawn from first ... last
    gradient_steps: int = 1  # steps with a gradient: the jump to the image, and this many less one before it (DRaFT-K)
    guidance: float = 4.0  # guidance scale in the roll-out: embedded, or of a second pass with the empty prompt
    shift: Shift = "flux"  # time shift of the roll-out's schedule; the released weights are sampled with "upstream"
    phi: str = "negative"  # loss of the reward: "negative" is -r, "clip" is max(margin - r, 0), as in ReFL
    margin: float = 2.0  # margin where phi is "clip"
    anchor: float = 0.0  # weight of the squared velocity difference to the model before the reward; 0: none
    blocks: int = 1  # parts of a batch that are decoded and rewarded one after another, to save memory
    remat_decoder: bool = True  # recompute the decoder's activations in the backward pass
    tile: int = 0  # pixels a side of the tiles that images are decoded in, to save memory; 0: whole images
    judges: tuple[str, ...] = ()  # rewards that are only measured, and that stop the stage when they fall
    patience: int = 0
    """Judgements in a row with a judge down and the reward up before the stage ends; 0: never."""
    tolerance: float = 0.02  # how far a judge may fall below its best before it counts as down
    max_skipped: int = 10  # steps in a row without a finite reward before the run stops

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
class TeacherConfig:
    """How a stage's starting model teaches its own student to draw in few steps (objectives.distillation)."""

    num_steps: int = 4  # steps that the student is to need
    substeps: int = 3  # steps of the teacher for each of them
    guidance: float = 4.0  # the teacher's scale: embedded, or of a second pass, which the student does without
    shift: Shift = "flux"  # time shift of the schedule that the student is to be sampled with

    def check(self, where: str) -> None:
        """Raise InputError for values that are invalid by themselves."""
        if self.num_steps < 1 or self.substeps < 1 or self.guidance < 0:
            raise InputError(
                f"{where}, teacher: num_steps and substeps must be at least 1, guidance not negative, not"
                f" {self.num_steps}, {self.substeps} and {self.guidance}"
            )


@dataclass(frozen=True)
class StageConfig:
    """One stage; the paper's two stages and its joint variant differ only in these values.

    Where the paper is silent, the defaults are the settings of UNO's trainer (arXiv 2504.02160).
    """

    name: str  # name of the stage
    loss: str = "flow_matching"  # objective, one of uso_jax.training.objectives.OBJECTIVES
    steps: int = 1000  # optimizer steps
    train: params.Rules = BOTH
    """(regex over parameter paths, learning-rate multiplier or None for frozen); the first match wins."""
    conditions: tuple[str, ...] = ("content", "style")  # references whose tokens are in the sequence
    batch_size: int = 16  # examples a step, over all devices
    target_size: tuple[int, int] = (512, 512)  # (height, width) of targets in pixels
    content_size: tuple[int, int] = (256, 256)  # (height, width) of content images in pixels
    data: Mapping[str, Any] = field(default_factory=lambda: {"tasks": {"style_subject": 1.0}})
    """Further arguments of the source, such as the weights of its tasks; sources that do not know them ignore them."""
    learning_rate: float = 8e-5  # peak learning rate
    warmup_steps: int = 100  # steps of linear warm-up
    decay: str = "constant"
    """Learning rate after warm-up, one of SCHEDULES. All but "constant" end at zero, "polynomial" by the square."""
    weight_decay: float = 0.01  # decoupled weight decay
    betas: tuple[float, float] = (0.9, 0.999)  # decay rates of the optimizer's moments
    eps: float = 1e-8  # epsilon of the optimizer
    clip_norm: float = 1.0  # global norm that gradients are clipped to
    accumulate: int = 1  # micro-batches a step; batch_size is their sum
    ema_decay: float = 0.0  # decay of the exponential moving average of parameters; 0: no average
    text_dropout: float = 0.1  # share of examples without a prompt
    content_dropout: float = 0.0  # share of examples without the content image
    style_dropout: float = 0.0  # share of examples without style images
    guidance: float = 1.0  # embedded guidance scale in the flow-matching loss; 4 is for sampling, FLUX.2 has none
    shift_mu: float | None = None  # exponent of the time shift in training; None: the base model's, by token count
    reward: RewardConfig | None = None  # style reward learning; None: no reward
    policy: PolicyConfig | None = None  # learning from scores of images without gradients; None: from data
    teacher: TeacherConfig | None = None  # of the loss "distillation"
    optimizer: str = "adamw"
    """One of OPTIMIZERS: "muon" updates the matrices of the blocks, "prodigy" finds its own rate around 1."""
    all_dropout: float = 0.0  # share of examples without any condition
    clip_cut: float = 0.0  # share of captions of which CLIP reads the beginning only, so T5's tokens carry the rest
    max_guidance: float = 5.0  # largest scale that the guidance loss draws
    target_aspects: tuple[tuple[int, int], ...] = ()
    """Aspects of targets as (height, width) at 512 x 512, scaled to target_size's area; (): target_size alone."""
    content_aspects: tuple[tuple[int, int], ...] = ()  # aspects of content images; (): content_size alone
    target_areas: tuple[int, ...] = ()
    """Sides of squares of smaller areas than target_size's. A target has the largest area to which it is not scaled up,
    and a batch has one; (): all targets have the area of target_size."""
    restarts: int = 1  # times that "cosine_restarts" begins again, each after an equal share of the steps
    timesteps: str = "uniform"  # distribution of training times before the shift, one of TIMESTEPS
    timestep_mean: float = 0.0  # mean of the logit, for "logit_normal"
    timestep_std: float = 1.0  # standard deviation of the logit, for "logit_normal"
    mode_scale: float = 1.29  # weight of the middle, for "mode"; -1 favours the ends most, 1.75 the middle most
    loss_weight: str = "none"  # weight of a time in the flow-matching loss, one of LOSS_WEIGHTS
    min_snr_gamma: float = 5.0  # largest signal-to-noise ratio that counts in full, for "min_snr"
    huber: float = 0.0  # velocity error above which the loss grows linearly (Huber); 0: squared error everywhere
    outside_mask: float = 1.0  # weight of the loss outside a target's mask; 1: masks are not read
    free_tokens: int = 0  # style tokens that the loss "words" leaves to other stages
    isolated: str = "none"
    """References that attend to each other only, which makes sampling faster: none, content (those from the
    autoencoder) or all (style tokens too)."""

    def __post_init__(self):
        where = f"stage {self.name!r}"
        if any(len(aspect) != 2 or min(aspect) < 1 for aspect in (*self.target_aspects, *self.content_aspects)):
            raise InputError(f"{where}: target_aspects and content_aspects are pairs of positive (height, width)")
        if any(not 0 < side * side < self.target_size[0] * self.target_size[1] for side in self.target_areas):
            raise InputError(
                f"{where}: target_areas {self.target_areas} must be sides of squares smaller than target_size"
                f" {'x'.join(map(str, self.target_size))}, the largest area"
            )
        if self.steps < 1 or self.batch_size < 1 or self.accumulate < 1:
            raise InputError(f"{where}: steps, batch_size and accumulate must be at least 1")
        if self.batch_size % self.accumulate:
            raise InputError(f"{where}: batch_size {self.batch_size} does not divide by accumulate {self.accumulate}")
        if unknown := set(self.conditions) - set(CONDITIONS):
            raise InputError(f"{where}: unknown conditions {sorted(unknown)}; known are {', '.join(CONDITIONS)}")
        choices = {
            "optimizer": OPTIMIZERS,
            "decay": SCHEDULES,
            "timesteps": TIMESTEPS,
            "loss_weight": LOSS_WEIGHTS,
            "isolated": get_args(Isolated),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"{where}: {name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        if self.optimizer == "schedule_free" and (self.decay != "constant" or self.ema_decay):
            raise InputError(
                f"{where}: schedule_free replaces decay and ema_decay; set decay to 'constant' and ema_decay to 0"
            )
        if self.decay == "cosine_restarts" and not 0 <= self.restarts < self.steps:
            raise InputError(f"{where}: restarts must be from 0 to steps - 1, not {self.restarts}")
        if self.timestep_std <= 0 or not -1 <= self.mode_scale <= 1.75:
            raise InputError(f"{where}: timestep_std must be positive, and mode_scale from -1 to 1.75")
        if self.min_snr_gamma <= 0 or self.huber < 0:
            raise InputError(f"{where}: min_snr_gamma must be positive, and huber 0 or positive")
        if self.outside_mask < 1 and self.loss != "flow_matching":
            raise InputError(f"{where}: outside_mask is for the loss 'flow_matching', not {self.loss!r}")
        for name in (
            "outside_mask",
            "text_dropout",
            "content_dropout",
            "style_dropout",
            "all_dropout",
            "clip_cut",
            "ema_decay",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{where}: {name} must lie between 0 and 1, not {getattr(self, name)}")
        if (self.teacher is None) != (self.loss != DISTILLATION):
            raise InputError(f"{where}: the loss {DISTILLATION!r} and a teacher go together; set both or neither")
        if self.teacher is not None:
            self.teacher.check(where)
        if self.reward is not None:
            self.reward.check(self)
        if self.policy is not None:
            self.policy.check(where, self.batch_size)
            if self.loss != "flow_matching" or self.reward is not None or self.target_aspects or self.target_areas:
                raise InputError(
                    f"{where}: a stage with a policy has the loss 'flow_matching', one target_size and no reward"
                )

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

    def bucket_sizes(self, pixels_per_token: int) -> dict[str, tuple]:
        """Return the (height, width) that batches of this stage may have, for targets and for content images.

        "smaller_sizes", of `target_areas`, is left out where there are none.
        """
        found: dict[str, tuple] = {
            "target_sizes": buckets.sizes(self.target_aspects, self.target_size, pixels_per_token),
            "content_sizes": buckets.sizes(self.content_aspects, self.content_size, pixels_per_token),
        }
        if self.target_areas:
            found["smaller_sizes"] = buckets.smaller_sizes(
                self.target_aspects, self.target_size, self.target_areas, pixels_per_token
            )
        return found

    @property
    def rollout_steps(self) -> float:
        """Mean number of steps without a gradient in the roll-out of the reward; 1 without a reward."""
        r = self.reward
        return 1.0 if r is None else r.num_steps - (r.first + r.last) / 2 - r.gradient_steps + 1

    @property
    def scored(self) -> RewardConfig | PolicyConfig | None:
        """What has the names of scores and judges: the reward, the policy, or None."""
        return self.reward if self.policy is None else self.policy

    @property
    def keeps_start(self) -> bool:
        """Whether training keeps the trained parameters as they were: for an anchor, or as the teacher."""
        return self.teacher is not None or (self.scored is not None and self.scored.anchor > 0)

    @property
    def keeps_average(self) -> bool:
        """Whether training keeps an average of the trained parameters, which is what it validates and passes on."""
        return bool(self.ema_decay) or self.optimizer == "schedule_free"

    def at_size(self, height: int, width: int) -> "StageConfig":
        """Return the stage for a batch whose targets have this size."""
        return dataclasses.replace(self, target_size=(height, width), target_areas=())

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
        if self.scored is not None and others:
            raise InputError(
                f"stage {self.name!r} has a reward, so it may train the transformer only, not {others[0]}: a codec, an"
                " encoder or a reward that learns would serve the reward and not the image"
            )
        return multipliers


def by_name(*stages: StageConfig) -> dict[str, StageConfig]:
    """Return stages by name, as `TrainConfig.stages` wants them."""
    return {stage.name: stage for stage in stages}
