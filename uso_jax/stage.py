# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A training stage as data: what is trained, on which conditions, by which optimizer, for how long."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optax

from uso_jax import params
from uso_jax.errors import InputError

CONDITIONS = ("content", "style")
OBJECTIVE_NAMES = ("flow_matching", "reconstruction", "image_text", "descriptors", "classification")


@dataclass(frozen=True)
class StageConfig:
    """One stage; the paper's two, and its joint variant, are only different values here."""

    name: str
    loss: str  # one of uso_jax.objectives.OBJECTIVES
    steps: int
    train: params.Rules  # (regex over parameter paths, learning-rate multiplier or None for frozen), first match wins
    conditions: tuple[str, ...]  # of "content", "style"; tokens of the others are left out of the sequence
    batch_size: int  # over all devices
    target_size: tuple[int, int]  # pixels, (height, width)
    content_size: tuple[int, int]
    data: Mapping[str, Any]  # further arguments of the source, if it knows them, such as the weights of its tasks
    learning_rate: float
    warmup_steps: int
    decay: str  # of the learning rate after warm-up: "constant", or "cosine" down to zero at the last step
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    clip_norm: float
    accumulate: int  # micro-batches a step; batch_size is their sum
    ema_decay: float  # 0 keeps no average
    text_dropout: float
    content_dropout: float
    style_dropout: float
    guidance: float  # embedded scale in the flow-matching loss
    shift_mu: float | None  # of the training times; None takes flow.shift_mu of the target's token count

    def __post_init__(self):
        where = f"stage {self.name!r}"
        if self.steps < 1 or self.batch_size < 1 or self.accumulate < 1:
            raise InputError(f"{where}: steps, batch_size and accumulate must be at least 1")
        if self.batch_size % self.accumulate:
            raise InputError(f"{where}: batch_size {self.batch_size} does not divide by accumulate {self.accumulate}")
        if unknown := set(self.conditions) - set(CONDITIONS):
            raise InputError(f"{where}: unknown conditions {sorted(unknown)}; known are {', '.join(CONDITIONS)}")
        if self.loss not in OBJECTIVE_NAMES:
            raise InputError(f"{where}: unknown loss {self.loss!r}; known are {', '.join(OBJECTIVE_NAMES)}")
        if self.decay not in ("constant", "cosine"):
            raise InputError(f"{where}: decay must be 'constant' or 'cosine', not {self.decay!r}")
        for name in ("text_dropout", "content_dropout", "style_dropout", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{where}: {name} must lie between 0 and 1, not {getattr(self, name)}")

    def check_sizes(self, pixels_per_token: int) -> None:
        """Refuse image sizes that do not divide into whole tokens."""
        sizes = {"target_size": self.target_size}
        if "content" in self.conditions:
            sizes["content_size"] = self.content_size
        for name, size in sizes.items():
            if any(side < pixels_per_token or side % pixels_per_token for side in size):
                raise InputError(
                    f"stage {self.name!r}: {name} {'x'.join(map(str, size))} must be a multiple of"
                    f" {pixels_per_token} pixels, the side of a token"
                )

    def rates(self, paths) -> dict[str, float]:
        """Give the learning-rate multipliers of the parameters this stage trains."""
        matched = params.match(self.train, paths, f"stage {self.name!r}, train")
        rates = {path: rate for path, rate in matched.items() if rate is not None}
        if not rates:
            raise InputError(f"stage {self.name!r} trains nothing; give a rule of `train` a rate")
        return rates

    def schedule(self) -> optax.Schedule:
        """Give the learning rate by step: linear warm-up, then constant, as in UNO's trainer, or a cosine."""
        rate, warmup = self.learning_rate, self.warmup_steps
        if self.decay == "constant":
            after = optax.constant_schedule(rate)
        else:
            after = optax.cosine_decay_schedule(rate, max(self.steps - warmup, 1))
        return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup]) if warmup else after

    def optimizer(self, rates: Mapping[str, float]) -> optax.GradientTransformation:
        """Make AdamW with clipping over exactly the parameters in `rates`."""

        def scale_rates(updates, state, params=None):
            del params
            return {path: update * rates[path] for path, update in updates.items()}, state

        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.adamw(self.schedule(), *self.betas, eps=self.eps, weight_decay=self.weight_decay),
            optax.GradientTransformation(lambda params: optax.EmptyState(), scale_rates),
        )
