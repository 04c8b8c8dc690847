# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One training step, pure: state and batch in, state and metrics out.

A stage's parameters are split in two: `state.params` is trained and is all the optimizer knows, `frozen` is the rest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from uso_jax.objectives import OBJECTIVES
from uso_jax.params import Params
from uso_jax.stage import StageConfig
from uso_jax.system import Batch, System


@jax.tree_util.register_dataclass
@dataclass
class TrainState:
    """What changes from step to step: trained parameters, their optimizer and their average ({} without one).

    Leaves are arrays or, in a state that only describes one, their shapes or shardings; so no types are promised here.
    """

    step: Any
    params: dict[str, Any]
    opt_state: optax.OptState
    ema: dict[str, Any]

    @property
    def result(self) -> Params:
        """The parameters to judge and to keep: the average where there is one."""
        return self.ema or self.params


def state_shardings(state: TrainState, where: Mapping[str, NamedSharding]) -> TrainState:
    """Give every array of a state its place: optimizer moments and averages live where their parameters live."""
    mesh = next(iter(where.values())).mesh

    def place(path, _):
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return where[names[-1]] if names else NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, state)


def init_state(
    stage: StageConfig, rates: Mapping[str, float], trainable: Params, where: Mapping[str, NamedSharding]
) -> TrainState:
    """Start a stage from the parameters it trains."""

    def make(trainable):
        ema = jax.tree.map(jnp.copy, trainable) if stage.ema_decay else {}
        return TrainState(jnp.zeros((), jnp.int32), trainable, stage.optimizer(rates).init(trainable), ema)

    return jax.jit(make, out_shardings=state_shardings(jax.eval_shape(make, trainable), where))(trainable)


def make_train_step(
    system: System, stage: StageConfig, rates: Mapping[str, float], seed: int
) -> Callable[[TrainState, Params, Batch], tuple[TrainState, dict[str, Array]]]:
    """Give the pure step function `(state, frozen, batch) -> (state, metrics)`; jit it with the state donated."""
    optimizer, schedule, objective = stage.optimizer(rates), stage.schedule(), OBJECTIVES[stage.loss]

    def loss_and_grads(trainable: Params, frozen: Params, batch: Batch, draws: Any):
        def loss(trainable, batch, draws):
            return objective.loss({**frozen, **trainable}, system, stage, batch, draws)

        if stage.accumulate == 1:
            return jax.value_and_grad(loss)(trainable, batch, draws)
        # Strided micro-batches: each keeps every device's share of the batch on that device.
        cut = lambda x: x.reshape(-1, stage.accumulate, *x.shape[1:]).swapaxes(0, 1)
        add = lambda total, micro: (jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(trainable, *micro)), None)
        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trainable))
        total, _ = jax.lax.scan(add, zeros, jax.tree.map(cut, (dict(batch), draws)))
        return jax.tree.map(lambda x: x / stage.accumulate, total)

    def train_step(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        loss, grads = loss_and_grads(state.params, frozen, batch, objective.draw(rng, system, stage))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        trainable = optax.apply_updates(state.params, updates)
        decay = stage.ema_decay
        ema = {path: decay * old + (1 - decay) * trainable[path] for path, old in state.ema.items()}
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(trainable),
            "learning_rate": schedule(state.step),
        }
        return TrainState(state.step + 1, trainable, opt_state, ema), metrics

    return train_step
