# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One train step as a pure function: state and batch in, state and metrics out.

A stage's parameters are split in two: `state.params` is trained and seen by the optimizer, `frozen` is the rest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from uso_jax.models.uso import USO, Batch
from uso_jax.params import Params
from uso_jax.training import optimizer, policy
from uso_jax.training.objectives import OBJECTIVES, POLICIES, reward
from uso_jax.training.objectives.flow_matching import encode_conditions
from uso_jax.training.stage import StageConfig


@jax.tree_util.register_dataclass
@dataclass
class TrainState:
    """What changes from step to step.

    Leaves are arrays, or their shapes or shardings in a state that describes another one, hence the loose types.

    Attributes:
      step: steps of the stage that are done, int32.
      params: trained parameters by path, float32.
      opt_state: state of the optimizer.
      ema: average of the trained parameters, exponential or schedule-free's; {} without one.
      anchor: trained parameters as they were when the reward or the policy began, for its anchor, or when the stage
        began, as the teacher; {} without one.
      old: trained parameters of the old policy, which generates the images of a stage with a policy; {} without one.
    """

    step: Any
    params: dict[str, Any]
    opt_state: optax.OptState
    ema: dict[str, Any]
    anchor: dict[str, Any] = field(default_factory=dict)
    old: dict[str, Any] = field(default_factory=dict)

    @property
    def result(self) -> Params:
        """The trained parameters to validate and to pass on: the average where there is one."""
        return self.ema or self.params


def state_shardings(state: TrainState, shardings: Mapping[str, NamedSharding]) -> TrainState:
    """Return the sharding of every array of a state: what has a parameter's shape is placed like it."""
    mesh = next(iter(shardings.values())).mesh

    def place(path, leaf):
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey) and key.key in shardings]
        # Adafactor's factored moments are smaller, and replicated.
        alike = bool(names) and leaf.shape == state.params[names[-1]].shape
        return shardings[names[-1]] if alike else NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, state)


def init_state(
    stage: StageConfig, lr_multipliers: Mapping[str, float], trainable: Params, shardings: Mapping[str, NamedSharding]
) -> TrainState:
    """Return the state before a stage's first step; `trainable` is copied."""
    placed = state_shardings(describe_state(stage, lr_multipliers, trainable), shardings)
    return jax.jit(lambda trainable: _first_state(stage, lr_multipliers, trainable), out_shardings=placed)(trainable)


def describe_state(stage: StageConfig, lr_multipliers: Mapping[str, float], trainable: Mapping[str, Any]) -> TrainState:
    """Return shapes and dtypes of the state that `init_state` makes of such parameters."""
    return jax.eval_shape(lambda trainable: _first_state(stage, lr_multipliers, trainable), trainable)


def _first_state(stage: StageConfig, lr_multipliers: Mapping[str, float], trainable: Mapping[str, Any]) -> TrainState:
    copy = lambda wanted: jax.tree.map(jnp.copy, trainable) if wanted else {}
    anchor = copy(stage.keeps_start)
    opt_state = optimizer.make(stage, lr_multipliers).init(trainable)
    step, ema, old = jnp.zeros((), jnp.int32), copy(stage.keeps_average), copy(stage.policy is not None)
    return TrainState(step, trainable, opt_state, ema, anchor, old)


def _mean(function: Callable, parts: tuple, count: int) -> Any:
    """Return the mean result of a function over the first axis of its arguments, one part at a time."""
    first = jax.tree.map(lambda x: x[0], parts)
    if count == 1:
        return function(*first)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(function, *first))
    add = lambda total, part: (jax.tree.map(jnp.add, total, function(*part)), None)
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda x: x / count, total)


def jit_train_step(
    system: USO,
    stage: StageConfig,
    lr_multipliers: Mapping[str, float],
    seed: int,
    shardings: TrainState,
    rewarded: bool | None = None,
) -> Callable[[TrainState, Params, Batch], tuple[TrainState, dict[str, Array]]]:
    """Return the jitted train step, which donates its state; `shardings` are those of the state (`state_shardings`)."""
    step = make_train_step(system, stage, lr_multipliers, seed, rewarded)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, shardings.step))


def make_train_step(
    system: USO, stage: StageConfig, lr_multipliers: Mapping[str, float], seed: int, rewarded: bool | None = None
) -> Callable[[TrainState, Params, Batch], tuple[TrainState, dict[str, Array]]]:
    """Return the pure step function `(state, frozen, batch) -> (state, metrics)`.

    It is traced once for each size of the batch's images.

    Args:
      system: the model.
      stage: what is trained, and how.
      lr_multipliers: learning-rate multipliers of the trained parameters, by path.
      seed: of everything random; the step number is folded in.
      rewarded: whether the stage's reward has begun, known when compiling; None decides by the state's step.
    """
    transform, rate = optimizer.make(stage, lr_multipliers), optimizer.schedule(stage)
    objective = OBJECTIVES[stage.loss]

    def mean_over_micro_batches(function: Callable, batch: Batch, draws: Any):
        if stage.accumulate == 1:
            return function(batch, draws)

        def cut(x):
            if not x.ndim:  # one draw for the whole batch
                return jnp.broadcast_to(x, (stage.accumulate,))
            # Strided micro-batches: each keeps every device's share of the batch on that device.
            return x.reshape(-1, stage.accumulate, *x.shape[1:]).swapaxes(0, 1)

        return _mean(function, jax.tree.map(cut, (dict(batch), draws)), stage.accumulate)

    def step_without_reward(stage: StageConfig, state: TrainState, frozen: Params, batch: Batch, rng: Array):
        teacher = {} if stage.teacher is None else {"teacher": {**frozen, **state.anchor}}

        def loss_and_grads(batch, draws):
            loss = lambda trainable: objective.loss({**frozen, **trainable}, system, stage, batch, draws, **teacher)
            return jax.value_and_grad(loss)(state.params)

        loss, grads = mean_over_micro_batches(loss_and_grads, batch, objective.draw(rng, system, stage))
        return loss, grads, {}

    def step_of_policy(stage: StageConfig, state: TrainState, frozen: Params, batch: Batch, rng: Array):
        objective, old = POLICIES[stage.policy.method], {**frozen, **state.old}
        anchor = {**frozen, **state.anchor} if state.anchor else None

        def losses_and_grads(batch, draws):
            # Adapters and projector are trained, what encodes text and images is not: it is the same for all policies.
            inputs = encode_conditions({**frozen, **state.params}, system, stage, batch)

            def at_level(draws):
                others = (old, anchor, system, stage, inputs, batch, draws)
                loss = lambda trainable: objective.loss({**frozen, **trainable}, *others)
                return jax.value_and_grad(loss, has_aux=True)(state.params)

            levels = jax.tree.map(lambda x: x.swapaxes(0, 1), draws)
            return _mean(at_level, (levels,), stage.policy.levels)

        (loss, figures), grads = mean_over_micro_batches(losses_and_grads, batch, objective.draw(rng, system, stage))
        return loss, grads, figures

    def step_with_reward(
        stage: StageConfig, state: TrainState, frozen: Params, batch: Batch, anchor: Params, rng: Array
    ):
        config, active = stage.reward, state.step >= stage.reward.start if rewarded is None else rewarded
        plain = objective.draw(rng, system, stage)
        draws = plain, reward.draw(jax.random.fold_in(rng, 1), system, stage)

        def losses_and_grads(batch, draws):
            return reward.value_and_grad(state.params, frozen, anchor, system, stage, batch, draws, active)

        batch = reward.weigh(system, stage, batch, plain)
        (pre, cost, tally), (grads, more) = mean_over_micro_batches(losses_and_grads, batch, draws)
        sound = jnp.isfinite(cost) & jnp.isfinite(optax.tree.norm(more))
        # A step that is skipped reports what it would have been without its reward.
        scale = jnp.where(sound & active, config.scale, 0.0)
        cost, more = jax.tree.map(lambda x: jnp.where(sound, x, 0.0), (cost, more))
        mean = lambda total, count: total / jnp.where(count > 0, count, 1)
        figures = {name: jnp.where(sound, mean(*figure), 0.0) for name, figure in tally.items()}
        figures |= {"reward_active": jnp.float32(active), "reward_skipped": 1.0 - sound}
        grads = jax.tree.map(lambda g, m: g + (scale * m).astype(g.dtype), grads, more)
        return pre + scale * cost, grads, {"loss_pre": pre, "loss_reward": cost} | figures

    def train_step(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        anchor, here = state.anchor, stage.at_size(*system.target_size(batch))
        if stage.policy is not None:
            loss, grads, figures = step_of_policy(here, state, frozen, batch, rng)
        elif stage.reward is None:
            loss, grads, figures = step_without_reward(here, state, frozen, batch, rng)
        else:
            begins = state.step == stage.reward.start
            anchor = {path: jnp.where(begins, state.params[path], old) for path, old in anchor.items()}
            loss, grads, figures = step_with_reward(here, state, frozen, batch, anchor, rng)
        updates, opt_state = transform.update(grads, state.opt_state, state.params)
        trainable = optax.apply_updates(state.params, updates)
        ema = optimizer.average(stage, state.ema, trainable, opt_state)
        if stage.reward is not None:
            keep = lambda new, old: jnp.where(figures["reward_skipped"] > 0, old, new)
            before = (state.params, state.opt_state, state.ema)
            trainable, opt_state, ema = jax.tree.map(keep, (trainable, opt_state, ema), before)
        old = state.old
        if stage.policy is not None:
            rounds, remaining = jnp.divmod(state.step + 1, stage.policy.steps_per_round(stage.batch_size))
            moved = policy.update_old(stage.policy, old, trainable, rounds)
            old = {path: jnp.where(remaining == 0, moved[path], value) for path, value in old.items()}
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(trainable),
            "learning_rate": rate(state.step),
        }
        return TrainState(state.step + 1, trainable, opt_state, ema, anchor, old), metrics | figures

    return train_step
