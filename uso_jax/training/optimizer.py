# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The optimizer of a stage: AdamW or Muon, with a learning rate by step and by parameter, and gradient clipping."""

from collections.abc import Mapping
from typing import Any

import optax
import optax.contrib

from uso_jax.training.stage import StageConfig

_MATRIX = optax.contrib.MuonDimensionNumbers(-2, -1)  # kernels are stacked over the blocks in the leading axis


def schedule(stage: StageConfig) -> optax.Schedule:
    """Return the learning rate by step: linear warm-up, then constant, as in UNO's trainer, or a cosine."""
    rate, warmup = stage.learning_rate, stage.warmup_steps
    if stage.decay == "constant":
        after = optax.constant_schedule(rate)
    else:
        after = optax.cosine_decay_schedule(rate, max(stage.steps - warmup, 1))
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup]) if warmup else after


def make(stage: StageConfig, lr_multipliers: Mapping[str, float]) -> optax.GradientTransformation:
    """Return a stage's optimizer over exactly the parameters in `lr_multipliers`, which scale the learning rate."""

    def scale_updates(updates, state, params=None):
        del params
        return {path: update * lr_multipliers[path] for path, update in updates.items()}, state

    return optax.chain(
        optax.clip_by_global_norm(stage.clip_norm),
        _KINDS[stage.optimizer](stage),
        optax.GradientTransformation(lambda params: optax.EmptyState(), scale_updates),
    )


def _adamw(stage: StageConfig) -> optax.GradientTransformation:
    return optax.adamw(schedule(stage), *stage.betas, eps=stage.eps, weight_decay=stage.weight_decay)


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


_KINDS = {"adamw": _adamw, "muon": _muon}
