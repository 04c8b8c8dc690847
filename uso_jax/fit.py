# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The training loop: one `fit` runs every stage of a configuration, from its parameters to its summary."""

import contextlib
import errno
import json
import pathlib
import sys
import time
import zlib
from dataclasses import dataclass, field

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from uso_jax import grid, guard, precompute, sharding, whole_file
from uso_jax.checkpoint import Checkpoints
from uso_jax.config import TrainConfig
from uso_jax.data.pipeline import batches, open_source
from uso_jax.errors import InputError
from uso_jax.evaluation.table import Evaluation
from uso_jax.guard import NotFinite
from uso_jax.heldout import Judge, is_cheating, pipeline_options
from uso_jax.initial import initial_params
from uso_jax.interruption import Stopped, StopRequest, Watchdog
from uso_jax.metrics import Metrics
from uso_jax.params import Params
from uso_jax.profile_window import ProfileWindow
from uso_jax.resume import Resume, arrays, fresh_record, is_finished, last_step
from uso_jax.speed import ModelFlops, Speed
from uso_jax.stage import StageConfig
from uso_jax.system import System
from uso_jax.train import TrainState, init_state, jit_train_step, state_shardings

BEFORE = "before.npz"  # the evaluation's pictures before training, by table


@dataclass
class _Run:
    """What all stages of one `fit` share."""

    config: TrainConfig
    system: System
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
    record: dict  # what the next checkpoint will say (uso_jax.resume)
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

    def end_if_asked(self, step: int | None = None) -> None:
        """End the program in good order if it was asked to; `step` is the one just done and saved."""
        if step is not None or self.stop.came():
            self.checkpoints.wait()
            last = self.checkpoints.latest()
            raise Stopped(f"stopped as asked; the same command continues {'from' if last else 'at'} step {last or 0}")


def fit(config: TrainConfig, workdir: str | pathlib.Path) -> dict:
    """Run or resume every stage; write checkpoints, metrics, sample grids and summary.json; give the summary.

    Raises:
      InputError: bad data, sizes or storage, a checkpoint of another configuration, or a loss that is not finite.
      Stopped: SIGTERM came, and a checkpoint is written.
    """
    workdir = pathlib.Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot use --workdir {workdir}: {error.strerror}") from error
    mesh = sharding.make_mesh(config.mesh)
    system = precompute.check(config)
    sharding.check_heads(mesh, config.system.transformer.num_heads)
    where = sharding.shardings(mesh, config.rules, system.shapes)
    rates = [stage.rates(system.shapes) for stage in config.stages]
    trained = set().union(*rates)
    _check_batches(config, mesh)

    # Resume: 1. the record says which stage and step; 2. parameters start as in a fresh run; 3. the checkpoint replaces
    # the trained ones, the optimizer and the average; 4. the data iterator moves to where it was.
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint_keep, config.checkpoint_keep_every)
    resume = Resume(config, system, where, trained, checkpoints, workdir)
    latest, record, saved = resume.newest() or (0, fresh_record(config), None)
    if is_finished(config, record):
        checkpoints.close()
        return _write_summary(config, record, workdir)
    run = _Run(
        config=config,
        system=system,
        mesh=mesh,
        where=where,
        trained=trained,
        workdir=workdir,
        checkpoints=checkpoints,
        metrics=Metrics(workdir, latest),
        speed=Speed(workdir, record["productive_seconds"]),
        watchdog=Watchdog(config.guard.watchdog_seconds),
        stop=StopRequest(),
        profile=ProfileWindow(config.profile, workdir / "profile"),
        record=record,
    )
    try:
        with jax.set_mesh(mesh):
            params = initial_params(config, system, where, trained)
            if config.evaluation is not None:
                run.evaluation = Evaluation(config, system, mesh)
                if "evaluation" not in record:
                    _evaluate_before(run, params)
            index = record["stage"]
            while index < len(config.stages):
                if index > run.record["stage"]:
                    run.record |= {"stage": index, "step": 0, "data": None, "seconds": 0.0}
                try:
                    params = _run_stage(run, index, params, rates[index], saved)
                    index, saved = index + 1, None
                except NotFinite as bad:
                    saved = _roll_back(run, resume, index, bad)
                    index = run.record["stage"]
        checkpoints.wait()
        return _write_summary(config, run.record, workdir)
    except OSError as error:
        # Checkpoints explain themselves; metrics, pictures and the summary can meet a full disk too.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InputError(
            f"cannot write to {workdir}: {error.strerror}. Free some space and run the same command to continue"
        ) from error
    finally:
        run.profile.close()
        run.metrics.close()
        checkpoints.close()
        run.stop.close()
        run.watchdog.close()


def _roll_back(run: _Run, resume: Resume, index: int, bad: NotFinite) -> dict:
    """Go back to the last checkpoint, and past the bad batch in the data; give the checkpoint's arrays.

    Batches between the checkpoint and the bad one are left out too, as they led there.
    """
    done = run.record.get("rollbacks", [])
    run.checkpoints.wait()
    found = resume.newest() if len(done) < run.config.guard.max_rollbacks else None
    if found is None:
        raise bad.give_up(run.checkpoints.latest(), len(done))
    step, run.record, saved = found
    run.record["rollbacks"] = [*done, {"stage": bad.stage, "step": bad.step, "to": step}]
    # The bad batch's stage may not have begun in the checkpoint.
    run.positions[index] = bad.position
    run.speed.productive = run.record["productive_seconds"]
    run.metrics.rewind(step)
    tqdm.write(f"{bad.sentence}; going on from step {step} without the batches up to it", file=sys.stderr)
    return saved


def _write_summary(config: TrainConfig, record: dict, workdir: pathlib.Path) -> dict:
    """Write summary.json whole or not at all."""
    summary = {"variant": config.variant, "stages": record["stages"]}
    if "rollbacks" in record:
        summary["rollbacks"] = record["rollbacks"]
    if "evaluation" in record:
        summary["evaluation"] = record["evaluation"]["main"]
        summary["tables"] = {name: table for name, table in record["evaluation"].items() if name != "main"}
    if jax.process_index() == 0:
        whole_file.write(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _run_stage(run: _Run, index: int, params: Params, rates: dict[str, float], saved: dict | None) -> Params:
    """Train one stage from its start or, if given, from a checkpoint's arrays; give all parameters after it."""
    config, record, stage, offset = run.config, run.record, run.config.stages[index], run.first_step(index)
    run.watchdog.beat(f"before stage {stage.name!r}")
    run.end_if_asked()

    # ---------------------------------------------------------------------------------------- parameters
    if saved is None:
        state = init_state(stage, rates, {path: params[path] for path in rates}, run.where)
    else:
        params = params | saved["params"]
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
    judge = Judge(config, run.system, run.mesh, stage)
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
    train_step = jit_train_step(run.system, stage, rates, seed, state_shardings(state, run.where))
    needed_flops = ModelFlops(config, stage, rates) if run.speed.wants_flops else lambda *_: 0.0
    if config.guard.max_rollbacks and run.checkpoints.latest() is None:
        run.save(state, frozen)  # something to roll back to

    # ---------------------------------------------------------------------------------------- train loop
    waiting = None  # the last step's metrics: read one step late, so that the device never waits for the host
    earlier, started = record["seconds"], time.monotonic()
    shown = dict(total=stage.steps, initial=record["step"], desc=stage.name, unit="step", dynamic_ncols=True)
    run.speed.begin_stage()
    with contextlib.closing(data), tqdm(**shown, disable=jax.process_index() > 0 or None) as bar:
        for step in range(record["step"] + 1, last_step(stage, record) + 1):
            run.profile.before(offset + step)
            batch = sharding.global_batch(run.mesh, next(data))
            operations = needed_flops(state, frozen, batch)
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
                run.end_if_asked(offset + step)
            if any(due.values()):
                run.watchdog.beat(f"after judging and saving step {offset + step}, stage {stage.name!r}")
                run.speed.resume()
            if last:
                break
    return frozen | state.result


def _evaluate_before(run: _Run, params: Params) -> None:
    """Record what every table says of the model before training and of the references, and keep its pictures."""
    before = run.evaluation.sample(params)
    if jax.process_index() == 0:
        np.savez(run.workdir / BEFORE, **before)
    known = run.evaluation.baselines(params)
    for name, figures in run.evaluation.figures(params, before).items():
        run.record.setdefault("evaluation", {})[name] = {"before": figures} | known[name]


def _evaluate(run: _Run, stage: dict, params: Params) -> None:
    """Record what every table says of the model after a stage, and draw its pictures."""
    after = run.evaluation.sample(params)
    stage["evaluation"] = run.evaluation.figures(params, after)
    for name in run.evaluation.tables:
        run.record["evaluation"][name]["after"] = stage["evaluation"][name]
    if jax.process_index():
        return
    with np.load(run.workdir / BEFORE, allow_pickle=False) as found:
        before = dict(found)
    for name, table in run.evaluation.tables.items():
        sheet = table.sheet(before[name], after[name], run.config.heldout.grid_rows)
        suffix = "" if name == "main" else f"_{name}"
        grid.save(sheet, run.workdir / "samples" / f"before_after{suffix}.png")


def _judge_reward(run: _Run, index: int, judge: Judge, params: Params, step: int) -> bool:
    """Record what reward and judges say of held-out pictures; tell whether the stage should end."""
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


def _report(run: _Run, index: int, bar: tqdm, step: int, values: dict[str, jax.Array], position: dict) -> None:
    """Record a step's metrics, if training can go on after them; `position` is the data's after its batch."""
    stage, number = run.config.stages[index], run.first_step(index) + step
    numbers = {key: float(value) for key, value in values.items()}
    numbers = guard.check(stage, number, numbers, run.record, position)
    bar.set_postfix(loss=f"{numbers['loss']:.4f}", refresh=False)
    if step % run.config.log_every == 0:
        run.metrics.write(number, stage.name, numbers)


def _check_batches(config: TrainConfig, mesh: Mesh) -> None:
    """Refuse batches that do not divide over the mesh."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    sizes = {f"stages.{s.name}.batch_size / accumulate": s.batch_size // s.accumulate for s in config.stages}
    sizes["heldout.batch_size"] = config.heldout.batch_size
    for name, size in sizes.items():
        if size % ways:
            raise InputError(f"config.{name} is {size}, which does not divide over {ways} (data x fsdp) devices")
