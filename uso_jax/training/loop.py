# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One stage of a run, from its parameters to its last checkpoint: the training loop."""

import contextlib
import functools
import pathlib
import time
import zlib
from dataclasses import dataclass, field
from typing import NoReturn

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from uso_jax.common import progress
from uso_jax.data.loader import batches
from uso_jax.data.sources import open_source
from uso_jax.images import contact_sheet
from uso_jax.models.uso import USO
from uso_jax.parallel import sharding
from uso_jax.params import Params
from uso_jax.training import fault_tolerance
from uso_jax.training.checkpoints import Checkpoints
from uso_jax.training.config import TrainConfig
from uso_jax.training.evaluation import Evaluation
from uso_jax.training.fault_tolerance import Stopped, StopRequest, Watchdog
from uso_jax.training.metric_writer import Metrics
from uso_jax.training.profiling import ModelFlops, ProfileWindow, Speed
from uso_jax.training.resume import arrays, last_step
from uso_jax.training.stage import StageConfig
from uso_jax.training.step import TrainState, init_state, jit_train_step, state_shardings
from uso_jax.training.validation import Validator, is_cheating, pipeline_options

BEFORE = "before.npz"  # the evaluation's images before training, by table


@dataclass
class Run:
    """What all stages of one `fit` share."""

    config: TrainConfig
    system: USO
    mesh: Mesh
    where: dict  # parameter path -> NamedSharding
    trained: set[str]  # parameters that any stage trains: float32, and in every checkpoint
    workdir: pathlib.Path
    checkpoints: Checkpoints
    metrics: Metrics
    speed: Speed
    watchdog: Watchdog
    stop: StopRequest
    profile: ProfileWindow
    record: dict  # what the next checkpoint will say (uso_jax.training.resume)
    evaluation: Evaluation | None = None
    positions: dict[int, dict] = field(default_factory=dict)  # of the data, by stage, after a roll-back to before it

    def first_step(self, index: int) -> int:
        """Give the global step at which a stage starts."""
        return sum(stage.steps for stage in self.config.stages[:index])

    def save(self, state: TrainState, frozen: Params) -> None:
        """Begin to write a checkpoint of the stage that `record` is in."""
        step = self.first_step(self.record["stage"]) + self.record["step"]
        self.record["productive_seconds"] = self.speed.productive
        self.checkpoints.save(step, arrays(self.trained, state, frozen), self.record)

    def end(self) -> NoReturn:
        """End the program in good order, as it was asked to."""
        self.checkpoints.wait()
        raise Stopped(f"stopped as asked; the same command continues from step {self.checkpoints.latest() or 0}")


def run_stage(run: Run, index: int, params: Params, rates: dict[str, float], saved: dict | None) -> Params:
    """Train one stage from its start or, if given, from a checkpoint's arrays; give all parameters after it.

    The trained ones of `params` are used up.
    """
    config, record, stage, offset = run.config, run.record, run.config.stages[index], run.first_step(index)
    run.watchdog.beat(f"before stage {stage.name!r}")
    if run.stop.came():
        run.end()

    # ---------------------------------------------------------------------------------------- parameters
    if saved is None:
        state = init_state(stage, rates, {path: params[path] for path in rates}, run.where)
        params |= state.params  # in place, as the caller would keep what they were copied from for the whole stage
    else:
        params |= saved["params"]
        state = TrainState(
            # Of a mesh over several hosts, each makes the part on its devices.
            step=jax.make_array_from_callback((), sharding.replicated(run.mesh), lambda _: np.int32(record["step"])),
            params={path: params[path] for path in rates},
            opt_state=saved["opt_state"],
            ema=saved["ema"],
            anchor=saved.get("anchor", {}),
        )
    frozen = {path: value for path, value in params.items() if path not in rates}

    # ---------------------------------------------------------------------------------------- data and step
    judge = Validator(config, run.system, run.mesh, stage)
    if len(record["stages"]) == index:
        before = judge.loss(frozen | state.result)
        record["stages"].append({"name": stage.name, "steps": stage.steps, "heldout_loss_before": before})
        if stage.reward is not None and stage.reward.start == 0:
            _judge_reward(run, index, judge, frozen | state.result, 0)
    seed, (process_index, process_count) = stage_seed(config.seed, stage), sharding.batch_share(run.mesh)
    data = iter(
        batches(
            open_source(config.data.train, stage.data),
            batch_size=stage.batch_size,
            seed=seed,
            process_index=process_index,
            process_count=process_count,
            num_workers=config.data.num_workers,
            **pipeline_options(config, stage),
        )
    )
    record["data"] = run.positions.pop(index, record["data"])
    if record["data"] is not None:
        data.set_state(record["data"])
    places = state_shardings(state, run.where)
    program = functools.cache(lambda *rewarded: jit_train_step(run.system, stage, rates, seed, places, *rewarded))
    # A branch of a program runs at half the speed on CPU: one program before the reward begins there, and one after.
    branches = stage.reward is not None and jax.default_backend() == "cpu"
    needed_flops = ModelFlops(config, stage, rates) if run.speed.wants_flops else lambda *_: 0.0
    if config.guard.max_rollbacks and run.checkpoints.latest() is None:
        run.save(state, frozen)  # something to roll back to

    # ---------------------------------------------------------------------------------------- train loop
    waiting = None  # the last step's metrics: read one step late, so that the device never waits for the host
    earlier, started = record["seconds"], time.monotonic()
    shown = dict(total=stage.steps, initial=record["step"], desc=stage.name, unit="step")
    run.speed.begin_stage()
    if jax.process_index():
        shown["disable"] = True
    with contextlib.closing(data), progress.bar(**shown) as bar:
        for step in range(record["step"] + 1, last_step(stage, record) + 1):
            run.profile.before(offset + step)
            batch = sharding.global_batch(run.mesh, next(data))
            operations = needed_flops(state, frozen, batch)
            train_step = program(step > stage.reward.start) if branches else program()
            state, values = train_step(state, frozen, batch)
            if waiting is not None:
                _report(run, index, bar, *waiting)
            waiting = step, values, data.get_state()
            bar.update()
            run.profile.after(offset + step, values)
            run.watchdog.beat(f"after step {offset + step}, stage {stage.name!r}")
            run.checkpoints.check()
            last, asked = step == stage.steps, run.stop.came(offset + step)
            due = {name: last or (every and step % every == 0) for name, every in _intervals(config).items()}
            due["grid"] |= stage.reward is not None and step == stage.reward.start  # what the reward is compared with
            due["checkpoint"] |= asked
            if any(due.values()):
                # Before anything is judged or saved, every loss up to here is known to be finite.
                _report(run, index, bar, *waiting)
                waiting = None
            run.speed.step(stage.batch_size, operations)
            if due["grid"]:
                judge.grid(frozen | state.result, run.workdir / "samples" / f"{offset + step:06d}_{stage.name}.png")
                if (
                    stage.reward is not None
                    and step >= stage.reward.start
                    and _judge_reward(run, index, judge, frozen | state.result, step)
                ):
                    record["stages"][index]["stopped"] = step
                    bar.write(
                        f"{stage.name}: a judge fell while the reward rose; stopped at step {step} (docs/reward.md)"
                    )
                    last, due = True, dict.fromkeys(due, True)
            if due["heldout"]:
                after = judge.loss(frozen | state.result)
                run.metrics.write(offset + step, stage.name, {"heldout_loss": after})
                record["stages"][index]["heldout_loss_after"] = after
            if due["checkpoint"]:
                if last and run.evaluation is not None:
                    _evaluate(run, record["stages"][index], frozen | state.result)
                seconds = earlier + time.monotonic() - started
                record |= {"step": step, "data": data.get_state(), "seconds": seconds}
                record["stages"][index]["seconds"] = round(seconds, 1)
                run.save(state, frozen)
            if last or step % config.log_every == 0:
                run.speed.write(run.metrics, offset + step, stage.name)
            if asked and not (last and index == len(config.stages) - 1):
                run.end()
            if any(due.values()):
                run.watchdog.beat(f"after judging and saving step {offset + step}, stage {stage.name!r}")
                run.speed.resume()
            if last:
                break
    return frozen | state.result


def evaluate_before(run: Run, params: Params) -> None:
    """Record what every table says of the model before training and of the references, and keep its images."""
    before = run.evaluation.sample(params)
    if jax.process_index() == 0:
        np.savez(run.workdir / BEFORE, **before)
    known = run.evaluation.baselines(params)
    for name, figures in run.evaluation.figures(params, before).items():
        run.record.setdefault("evaluation", {})[name] = {"before": figures} | known[name]


def _evaluate(run: Run, stage: dict, params: Params) -> None:
    """Record what every table says of the model after a stage, and draw its images."""
    after = run.evaluation.sample(params)
    stage["evaluation"] = run.evaluation.figures(params, after)
    for name in run.evaluation.tables:
        run.record["evaluation"][name]["after"] = stage["evaluation"][name]
    if jax.process_index():
        return
    with np.load(run.workdir / BEFORE, allow_pickle=False) as found:
        before = dict(found)
    columns = {name: table.columns(before[name], after[name]) for name, table in run.evaluation.tables.items()}
    made = {f"{name}/{key}": images for name, found in columns.items() for key, images in found.items()}
    np.savez_compressed(run.workdir / contact_sheet.COLUMNS, **made)
    for name, found in columns.items():
        sheet = contact_sheet.draw({key: images[: run.config.heldout.grid_rows] for key, images in found.items()})
        suffix = "" if name == "main" else f"_{name}"
        contact_sheet.save(sheet, run.workdir / "samples" / f"before_after{suffix}.png")


def _judge_reward(run: Run, index: int, judge: Validator, params: Params, step: int) -> bool:
    """Record what reward and judges say of held-out images; tell whether the stage should end."""
    stage, figures = run.config.stages[index], judge.judge(params)
    run.metrics.write(run.first_step(index) + step, stage.name, figures)
    history = run.record["stages"][index].setdefault("reward", [])
    history.append({"step": step, **figures})
    return is_cheating(stage.reward, history)


def stage_seed(seed: int, stage: StageConfig) -> int:
    """Give a stage's own seed; it depends on the name, so a stage does the same whatever runs before it."""
    return (seed + zlib.crc32(stage.name.encode())) % 2**31


def _intervals(config: TrainConfig) -> dict[str, int]:
    return {
        "checkpoint": config.checkpoint_every,
        "heldout": config.heldout.every,
        "grid": config.heldout.grid_every,
    }


def _report(run: Run, index: int, bar: tqdm, step: int, values: dict[str, jax.Array], position: dict) -> None:
    """Record a step's metrics, if training can go on after them; `position` is the data's after its batch."""
    stage, number = run.config.stages[index], run.first_step(index) + step
    numbers = {key: float(value) for key, value in values.items()}
    numbers = fault_tolerance.check(stage, number, numbers, run.record, position)
    bar.set_postfix(loss=f"{numbers['loss']:.4f}", refresh=False)
    if step % run.config.log_every == 0:
        run.metrics.write(number, stage.name, numbers)
