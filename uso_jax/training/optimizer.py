# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The optimizer of a stage, from optax by name, with a learning rate by step and by parameter, and gradient clipping.

Trained parameters and their updates are float32; no stochastic rounding is needed.
"""

from collections.abc import Callable, Mapping
from typing import Any

import optax
import optax.contrib

from uso_jax.training.stage import StageConfig

_MATRIX = optax.contrib.MuonDimensionNumbers(-2, -1)  # kernels are stacked over the blocks in the leading axis


def schedule(stage: StageConfig) -> optax.Schedule:
    """Return the learning rate by step: linear warm-up, then `stage.decay`; constant as in UNO's trainer."""
    rate, warmup = stage.learning_rate, stage.warmup_steps
    steps = max(stage.steps - warmup, 1)
    if stage.decay == "constant":
        after = optax.constant_schedule(rate)
    elif stage.decay == "linear":
        after = optax.linear_schedule(rate, 0.0, steps)
    elif stage.decay == "polynomial":
        after = optax.polynomial_schedule(rate, 0.0, 2, steps)
    else:
        cycles = 1 + (stage.restarts if stage.decay == "cosine_restarts" else 0)
        ends = [round(steps * (cycle + 1) / cycles) for cycle in range(cycles)]
        lengths = [max(end - start, 1) for start, end in zip([0, *ends], ends, strict=False)]
        after = optax.join_schedules([optax.cosine_decay_schedule(rate, length) for length in lengths], ends[:-1])
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup]) if warmup else after


def make(stage: StageConfig, lr_multipliers: Mapping[str, float]) -> optax.GradientTransformation:
    """Return a stage's optimizer over exactly the parameters in `lr_multipliers`, which scale the learning rate."""

    def scale_updates(updates, state, params=None):
        del params
        return {path: update * lr_multipliers[path] for path, update in updates.items()}, state

    scale = optax.GradientTransformation(lambda params: optax.EmptyState(), scale_updates)
    clip = optax.clip_by_global_norm(stage.clip_norm)
    if stage.optimizer == "schedule_free":
        return optax.chain(clip, _schedule_free(stage, scale))
    return optax.chain(clip, _KINDS[stage.optimizer](stage), scale)


def _adamw(stage: StageConfig) -> optax.GradientTransformation:
    return optax.adamw(schedule(stage), *stage.betas, eps=stage.eps, weight_decay=stage.weight_decay)


def _adafactor(stage: StageConfig) -> optax.GradientTransformation:
    """Return Adafactor with the stage's learning rate, not one relative to each parameter's size (arXiv 1804.04235)."""
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(stage.weight_decay),
        optax.scale_by_learning_rate(schedule(stage)),
    )


def _lion(stage: StageConfig) -> optax.GradientTransformation:
    return optax.lion(schedule(stage), *stage.betas, weight_decay=stage.weight_decay)


def _prodigy(stage: StageConfig) -> optax.GradientTransformation:
    """Return Prodigy, whose learning rate multiplies the one that it finds (arXiv 2306.06101)."""
    return optax.contrib.prodigy(
        schedule(stage), stage.betas, eps=stage.eps, weight_decay=stage.weight_decay, safeguard_warmup=True
    )


def _schedule_free(stage: StageConfig, scale: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return schedule-free AdamW (arXiv 2405.15682); `scale` applies to its steps, not to its averages."""
    b1, b2 = stage.betas
    inner = optax.chain(
        optax.scale_by_rms(decay=b2, eps=stage.eps, eps_in_sqrt=False, bias_correction=True),  # Adam without momentum
        optax.add_decayed_weights(stage.weight_decay),
        optax.scale_by_learning_rate(schedule(stage)),
        scale,
    )
    return optax.contrib.schedule_free(inner, schedule(stage), b1)


def average(
    stage: StageConfig, previous: Mapping[str, Any], params: Mapping[str, Any], opt_state: optax.OptState
) -> dict[str, Any]:
    """Return the average of trained parameters to validate and export: schedule-free's, or an exponential one."""
    if stage.optimizer == "schedule_free":
        _, free = opt_state
        return optax.contrib.schedule_free_eval_params(free, dict(params))
    decay = stage.ema_decay
    return {path: decay * old + (1 - decay) * params[path] for path, old in previous.items()}


def _muon(stage: StageConfig) -> optax.GradientTransformation:
    """Return Muon for the blocks' matrices and AdamW for the rest; one learning rate suits both (arXiv 2502.16982)."""
    return optax.contrib.muon(
        schedule(stage),
        ns_steps=4,
        preconditioning="schatten",  # saves the fifth Newton-Schulz step (arXiv 2512.04632)
        weight_decay=stage.weight_decay,
        adam_b1=stage.betas[0],
        adam_b2=stage.betas[1],
        eps=stage.eps,
        adam_weight_decay=stage.weight_decay,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=0.2,
    )


def _matrices(found: Mapping[str, Any]) -> dict[str, optax.contrib.MuonDimensionNumbers | None]:
    """Select what Muon updates. AdamW keeps modulations: the rank of their gradient is at most the batch size."""
    chosen = lambda path: "blocks/" in path and path.endswith("/kernel") and "mod" not in path
    return {path: _MATRIX if chosen(path) else None for path in found}


_KINDS: dict[str, Callable[[StageConfig], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "muon": _muon,
    "adafactor": _adafactor,
    "lion": _lion,
    "prodigy": _prodigy,
}
