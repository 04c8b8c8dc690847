# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The training loop: one stage of a run, from its parameters to its last checkpoint."""

import contextlib
import functools
import zlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import jax
import numpy as np

from uso_jax.common import progress
from uso_jax.data.loader import batches
from uso_jax.parallel import sharding
from uso_jax.params import Params
from uso_jax.training import fault_tolerance
from uso_jax.training.hooks import StepInfo, stage_hooks, validate_reward
from uso_jax.training.profiling import ModelFlops
from uso_jax.training.record import StageRecord
from uso_jax.training.rollouts import Rollouts
from uso_jax.training.run import Run
from uso_jax.training.stage import StageConfig
from uso_jax.training.step import TrainState, init_state, jit_train_step, state_shardings
from uso_jax.training.validation import Validator, pipeline_options


def run_stage(run: Run, index: int, params: Params, lr_multipliers: dict[str, float], saved: dict | None) -> Params:
    """Train one stage, from its start or from a checkpoint, and return all parameters after it.

    Args:
      run: the run, whose record says how far it is.
      index: which of its stages.
      params: all parameters; the trained ones are used up.
      lr_multipliers: learning-rate multipliers of the parameters that the stage trains.
      saved: the arrays of a checkpoint of this stage, which are used up, or None.
    """
    config, record, stage, offset = run.config, run.record, run.config.run_stages[index], run.first_step(index)
    run.watchdog.beat(f"before stage {stage.name!r}")
    if run.stop.came():
        run.end()
    state, frozen = _first_state(run, stage, params, lr_multipliers, saved)
    validator = Validator(config, run.system, run.mesh, stage)
    if len(record.stages) == index:
        _begin_record(run, index, validator, frozen | state.result, state.anchor)
    data = _open_data(run, index)
    train_step = _train_step(run, stage, lr_multipliers, state)
    needed_flops = ModelFlops(config, stage, lr_multipliers) if run.speed.wants_flops else lambda *_: 0.0
    if config.guard.max_rollbacks and run.checkpoints.latest() is None:
        run.save(state, frozen)  # something to roll back to
    shown = dict(total=stage.steps, initial=record.step, desc=stage.name, unit="step")

    with contextlib.closing(data), progress.bar(**shown) as bar:
        hooks, metrics = stage_hooks(run, index, validator, bar.write), _LateMetrics(run, index, bar)
        run.speed.begin_stage()
        compiled = None
        for step in range(record.step + 1, record.last_step(stage) + 1):
            run.profile.before(offset + step)
            batch = data.batch(state, frozen)
            operations = needed_flops(state, frozen, batch)
            program = train_step(step)
            with progress.phase("compiling the train step") if program is not compiled else contextlib.nullcontext():
                state, values = program(state, frozen, batch)
            compiled = program
            position = data.get_state()
            if data.figures:
                run.metrics.write(offset + step, stage.name, data.figures)
            metrics.add(step, values, position)
            bar.update()
            run.profile.after(offset + step, values)
            run.watchdog.beat(f"after step {offset + step}, stage {stage.name!r}")
            run.checkpoints.check()
            if run.lock is not None:
                run.lock.check()
            info = StepInfo(step, position, asked=run.stop.came(offset + step), last=step == stage.steps)
            pausing = any(hook.blocking and hook.is_due(info) for hook in hooks)
            if pausing:
                metrics.flush()  # before anything is validated or saved, every loss is known to be finite
            run.speed.step(stage.batch_size, operations)
            for hook in hooks:
                if hook.is_due(info):
                    with progress.phase(hook.name):
                        hook.call(info, state, frozen)
            if info.asked and not (info.last and index == len(config.run_stages) - 1):
                with progress.phase("saving"):
                    run.end()
            if pausing:
                run.watchdog.beat(f"after validating and saving step {offset + step}, stage {stage.name!r}")
                run.speed.resume()
            if info.last:
                break
    return frozen | state.result


def stage_seed(seed: int, stage: StageConfig) -> int:
    """Return a stage's seed; it depends on the stage's name, so a stage does the same whatever runs before it."""
    return (seed + zlib.crc32(stage.name.encode())) % 2**31


def _first_state(
    run: Run, stage: StageConfig, params: Params, lr_multipliers: Mapping[str, float], saved: dict | None
) -> tuple[TrainState, Params]:
    """Return the state to begin with, and the frozen parameters. `params` is changed in place.

    The caller would otherwise keep the parameters that the state was copied from for the whole stage.
    """
    if saved is None:
        trainable = {path: params[path] for path in lr_multipliers}
        state = init_state(stage, lr_multipliers, trainable, run.shardings)
        params |= state.params
    else:
        params |= saved.pop("params")
        state = TrainState(
            # On a mesh over several hosts, each host makes the part on its devices.
            step=jax.make_array_from_callback((), sharding.replicated(run.mesh), lambda _: np.int32(run.record.step)),
            params={path: params[path] for path in lr_multipliers},
            opt_state=saved.pop("opt_state"),
            ema=saved.pop("ema"),
            anchor=saved.pop("anchor", {}),
            old=saved.pop("old", {}),
        )
    return state, {path: value for path, value in params.items() if path not in lr_multipliers}


def _begin_record(run: Run, index: int, validator: Validator, params: Params, start: Params) -> None:
    """Begin the record of a stage with what held-out data says before its first step."""
    stage = run.config.run_stages[index]
    with progress.phase(f"{stage.name}, validating before the first step"):
        loss = validator.loss(params, start)
        run.record.stages.append(StageRecord(stage.name, stage.steps, heldout_loss_before=loss))
        if stage.scored is not None and stage.scored.start == 0:
            validate_reward(run, index, validator, params, 0)


class _Batches:
    """The batches of a stage that trains on data."""

    figures: Mapping[str, float] = MappingProxyType({})  # roll-outs have some

    def __init__(self, mesh: jax.sharding.Mesh, data: Iterator[dict[str, np.ndarray]]):
        self._mesh, self._data = mesh, data
        self.get_state, self.set_state, self.close = data.get_state, data.set_state, data.close

    def batch(self, state: TrainState, frozen: Params) -> dict[str, jax.Array]:
        """Return the next batch on the devices."""
        del state, frozen
        return sharding.global_batch(self._mesh, next(self._data))


def _open_data(run: Run, index: int) -> "_Batches | Rollouts":
    """Open a stage's batches, at the position on record."""
    config, stage = run.config, run.config.run_stages[index]
    process_index, process_count = sharding.batch_share(run.mesh)
    policy, seed = stage.policy, stage_seed(config.seed, stage)
    stream = iter(
        batches(
            run.data.source(index, run.record),
            batch_size=stage.batch_size if policy is None else policy.prompts,
            seed=seed,
            process_index=process_index,
            process_count=process_count,
            num_workers=config.data.num_workers,
            rows=policy is not None,
            **pipeline_options(config, stage),
        )
    )
    if policy is None:
        data = _Batches(run.mesh, stream)
    else:
        data = Rollouts(run.system, stage, run.mesh, stream, seed, run.workdir / "rollouts" / stage.name)
    run.record.data = run.positions.pop(index, run.record.data)
    if run.record.data is not None:
        data.set_state(run.record.data)
    return data


def _train_step(
    run: Run, stage: StageConfig, lr_multipliers: Mapping[str, float], state: TrainState
) -> Callable[[int], Callable]:
    """Return a function from a step's number to the compiled train step for it."""
    seed, shardings = stage_seed(run.config.seed, stage), state_shardings(state, run.shardings)
    program = functools.cache(
        lambda *rewarded: jit_train_step(run.system, stage, lr_multipliers, seed, shardings, *rewarded)
    )
    if stage.reward is not None and jax.default_backend() == "cpu":
        # A branch of a program runs at half the speed on CPU: one program before the reward begins, and one after.
        return lambda step: program(step > stage.reward.start)
    return lambda step: program()


class _LateMetrics:
    """Records each step's metrics one step late, so that the device never waits for the host.

    Both methods raise what `fault_tolerance.check` finds wrong with a step.
    """

    def __init__(self, run: Run, index: int, bar: progress.Bar):
        self._run, self._stage, self._offset, self._bar = run, run.config.run_stages[index], run.first_step(index), bar
        self._waiting: tuple[int, dict[str, jax.Array], dict] | None = None

    def add(self, step: int, values: dict[str, jax.Array], position: dict) -> None:
        """Record the step before, and keep this one's metrics; `position` is the data's after its batch."""
        self.flush()
        self._waiting = step, values, position

    def flush(self) -> None:
        """Record the metrics that are kept, if there are any."""
        if self._waiting is None:
            return
        step, values, position = self._waiting
        self._waiting = None
        run, number = self._run, self._offset + step
        numbers = {key: float(value) for key, value in values.items()}
        numbers = fault_tolerance.check(self._stage, number, numbers, run.record, position)
        self._bar.note(f"loss={numbers['loss']:.4f}")
        if step % run.config.log_every == 0:
            run.metrics.write(number, self._stage.name, numbers)
