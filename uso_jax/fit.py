# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The training loop: one `fit` runs every stage of a configuration, from its parameters to its summary."""

import contextlib
import errno
import json
import math
import pathlib
import time
import zlib
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from uso_jax import grid, precompute, sharding, whole_file
from uso_jax.checkpoint import Checkpoints
from uso_jax.config import TrainConfig
from uso_jax.data.pipeline import batches, open_source
from uso_jax.errors import InputError
from uso_jax.evaluation.table import Evaluation
from uso_jax.heldout import Judge, is_cheating, pipeline_options
from uso_jax.initial import initial_params
from uso_jax.metrics import Metrics
from uso_jax.params import Params
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
    evaluation: Evaluation | None
    record: dict  # what the next checkpoint will say: stage, step, data position, seconds, finished stages

    def first_step(self, index: int) -> int:
        """Give the global step at which a stage starts."""
        return sum(stage.steps for stage in self.config.stages[:index])

    def save(self, state: TrainState, frozen: Params) -> None:
        """Write a checkpoint of the stage that `record` is in."""
        step = self.first_step(self.record["stage"]) + self.record["step"]
        self.checkpoints.save(step, self.arrays(state, frozen), self.record)

    def arrays(self, state: TrainState, frozen: Params) -> dict:
        """Give what a checkpoint holds."""
        params = {path: value for path, value in {**frozen, **state.params}.items() if path in self.trained}
        anchor = {"anchor": state.anchor} if state.anchor else {}
        return {"params": params, "opt_state": state.opt_state, "ema": state.ema} | anchor


def fit(config: TrainConfig, workdir: str | pathlib.Path) -> dict:
    """Run or resume every stage; write checkpoints, metrics, sample grids and summary.json; give the summary.

    Raises:
      InputError: bad data, sizes or storage, a checkpoint of another configuration, or a loss that is not finite.
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
    _check_batches(config, mesh)

    # Resume: 1. the record says which stage and step; 2. parameters start as in a fresh run; 3. the checkpoint replaces
    # the trained ones, the optimizer and the average; 4. the data iterator moves to where it was.
    record = {"config": config.fingerprint(), "stage": 0, "step": 0, "data": None, "seconds": 0.0, "stages": []}
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint_keep)
    latest = checkpoints.latest()
    if latest is not None:
        saved = checkpoints.record(latest)
        _check_same_config(saved["config"], record["config"], workdir)
        record = saved
    if record["stage"] == len(config.stages) - 1 and record["step"] == _last_step(config.stages[-1], record):
        checkpoints.close()
        return _write_summary(config, record, workdir)
    run = _Run(
        config=config,
        system=system,
        mesh=mesh,
        where=where,
        trained=set().union(*rates),
        workdir=workdir,
        checkpoints=checkpoints,
        metrics=Metrics(workdir, latest or 0),
        evaluation=None,
        record=record,
    )
    try:
        with jax.set_mesh(mesh):
            params = initial_params(config, system, where, run.trained)
            if config.evaluation is not None:
                run.evaluation = Evaluation(config, system, mesh)
                if "evaluation" not in record:
                    before = run.evaluation.sample(params)
                    np.savez(workdir / BEFORE, **before)
                    known = run.evaluation.baselines(params)
                    for name, figures in run.evaluation.figures(params, before).items():
                        record.setdefault("evaluation", {})[name] = {"before": figures} | known[name]
            for index in range(record["stage"], len(config.stages)):
                if index > record["stage"]:
                    record |= {"stage": index, "step": 0, "data": None, "seconds": 0.0}
                    latest = None
                params = _run_stage(run, index, params, rates[index], latest)
        return _write_summary(config, record, workdir)
    except OSError as error:
        # Checkpoints explain themselves; metrics, pictures and the summary can meet a full disk too.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InputError(
            f"cannot write to {workdir}: {error.strerror}. Free some space and run the same command to continue"
        ) from error
    finally:
        run.metrics.close()
        checkpoints.close()


def _write_summary(config: TrainConfig, record: dict, workdir: pathlib.Path) -> dict:
    """Write summary.json whole or not at all."""
    summary = {"variant": config.variant, "stages": record["stages"]}
    if "evaluation" in record:
        summary["evaluation"] = record["evaluation"]["main"]
        summary["tables"] = {name: table for name, table in record["evaluation"].items() if name != "main"}
    whole_file.write(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _run_stage(run: _Run, index: int, params: Params, rates: dict[str, float], latest: int | None) -> Params:
    """Train one stage from its start or, if `latest` is given, from that checkpoint; give all parameters after it."""
    config, record, stage, offset = run.config, run.record, run.config.stages[index], run.first_step(index)

    # ---------------------------------------------------------------------------------------- parameters
    state = init_state(stage, rates, {path: params[path] for path in rates}, run.where)
    if latest is not None:
        arrays = run.checkpoints.restore(latest, run.arrays(state, params))
        params = params | arrays["params"]
        state = TrainState(
            step=jax.device_put(jnp.asarray(record["step"], jnp.int32), sharding.replicated(run.mesh)),
            params={path: params[path] for path in rates},
            opt_state=arrays["opt_state"],
            ema=arrays["ema"],
            anchor=arrays.get("anchor", {}),
        )
    frozen = {path: value for path, value in params.items() if path not in rates}

    # ---------------------------------------------------------------------------------------- data and step
    judge = Judge(config, run.system, run.mesh, stage)
    if len(record["stages"]) == index:
        before = judge.loss(frozen | state.result)
        record["stages"].append({"name": stage.name, "steps": stage.steps, "heldout_loss_before": before})
        if stage.reward is not None and stage.reward.start == 0:
            _judge_reward(run, index, judge, frozen | state.result, 0)
    data = iter(
        batches(
            open_source(config.data.train, stage.data),
            batch_size=stage.batch_size,
            seed=stage_seed(config.seed, stage),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_workers=config.data.num_workers,
            **pipeline_options(config, stage),
        )
    )
    if record["data"] is not None:
        data.set_state(record["data"])
    places = state_shardings(state, run.where)
    train_step = jit_train_step(run.system, stage, rates, stage_seed(config.seed, stage), places)

    # ---------------------------------------------------------------------------------------- train loop
    waiting = None  # the last step's metrics: read one step late, so that the device never waits for the host
    earlier, started = record["seconds"], time.monotonic()
    shown = dict(total=stage.steps, initial=record["step"], desc=stage.name, unit="step", dynamic_ncols=True)
    with contextlib.closing(data), tqdm(**shown) as bar:
        for step in range(record["step"] + 1, _last_step(stage, record) + 1):
            batch = sharding.global_batch(run.mesh, next(data))
            state, values = train_step(state, frozen, batch)
            if waiting is not None:
                _report(run, index, bar, *waiting)
            waiting = step, values
            bar.update()
            last = step == stage.steps
            due = {name: last or (every and step % every == 0) for name, every in _intervals(config).items()}
            due["grid"] |= stage.reward is not None and step == stage.reward.start  # what the reward is compared with
            if any(due.values()):
                # Before anything is judged or saved, every loss up to here is known to be finite.
                _report(run, index, bar, *waiting)
                waiting = None
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
            if last:
                break
    return frozen | state.result


def _evaluate(run: _Run, stage: dict, params: Params) -> None:
    """Record what every table says of the model after a stage, and draw its pictures."""
    after = run.evaluation.sample(params)
    stage["evaluation"] = run.evaluation.figures(params, after)
    with np.load(run.workdir / BEFORE, allow_pickle=False) as found:
        before = dict(found)
    for name, table in run.evaluation.tables.items():
        run.record["evaluation"][name]["after"] = stage["evaluation"][name]
        sheet = table.sheet(before[name], after[name], run.config.heldout.grid_rows)
        suffix = "" if name == "main" else f"_{name}"
        grid.save(sheet, run.workdir / "samples" / f"before_after{suffix}.png")


def _last_step(stage: StageConfig, record: dict) -> int:
    """Give the step at which the stage that `record` is in ends, or ended early."""
    stages = record["stages"]
    begun = stages[record["stage"]] if record["stage"] < len(stages) else {}
    return begun.get("stopped", stage.steps)


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


def _report(run: _Run, index: int, bar: tqdm, step: int, values: dict[str, jax.Array]) -> None:
    """Record a step's metrics; stop the run if its loss or gradient is not finite, or its reward too often."""
    stage, offset = run.config.stages[index], run.first_step(index)
    name, numbers = stage.name, {key: float(value) for key, value in values.items()}
    if stage.reward is not None:
        numbers = _count_skipped(run, index, step, numbers)
    # The parameters' own norm counts too: a step may end in numbers no later step can use, though its loss was finite.
    if not all(map(math.isfinite, numbers.values())):
        last = run.checkpoints.latest()
        kept = "no checkpoint was written before" if last is None else f"the last good checkpoint is step {last}"
        raise InputError(
            f"stage {name!r} diverged at step {offset + step}: loss {numbers['loss']}, norm of gradients"
            f" {numbers['grad_norm']}, of parameters {numbers['param_norm']}; {kept}. Lower"
            f" --config.stages.{name}.learning_rate, with another --workdir, or check the data"
        )
    bar.set_postfix(loss=f"{numbers['loss']:.4f}", refresh=False)
    if step % run.config.log_every == 0:
        run.metrics.write(offset + step, name, numbers)


def _count_skipped(run: _Run, index: int, step: int, numbers: dict[str, float]) -> dict[str, float]:
    """Count steps that were skipped, stop the run after too many, and leave out figures that mean nothing."""
    stage, record = run.config.stages[index], run.record
    skipped = numbers["reward_skipped"] > 0
    record["skipped_in_a_row"] = record.get("skipped_in_a_row", 0) + 1 if skipped else 0
    if skipped:
        record["stages"][index]["skipped"] = record["stages"][index].get("skipped", 0) + 1
    if record["skipped_in_a_row"] >= stage.reward.max_skipped:
        raise InputError(
            f"stage {stage.name!r}: the reward ({', '.join(stage.reward.weights)}) or its gradient was not finite in"
            f" {record['skipped_in_a_row']} steps in a row, the last of them step {run.first_step(index) + step};"
            " parameters are as they were before these steps. Check the reward's weights and the data"
        )
    rewarded = numbers["reward_active"] > 0 and not skipped
    of_reward = lambda key: key == "loss_reward" or key.startswith("reward_") or key == "reward"
    kept = {key: number for key, number in numbers.items() if rewarded or not of_reward(key)}
    return kept | {"reward_skipped": float(record["stages"][index].get("skipped", 0))}


def _check_batches(config: TrainConfig, mesh: Mesh) -> None:
    """Refuse batches that do not divide over the mesh."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    sizes = {f"stages.{s.name}.batch_size / accumulate": s.batch_size // s.accumulate for s in config.stages}
    sizes["heldout.batch_size"] = config.heldout.batch_size
    for name, size in sizes.items():
        if size % ways:
            raise InputError(f"config.{name} is {size}, which does not divide over {ways} (data x fsdp) devices")


def _check_same_config(saved: dict, wanted: dict, workdir: pathlib.Path) -> None:
    """Refuse to continue a run under other settings; name the first ones that differ."""

    def differences(a, b, path):
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted(a.keys() | b.keys()):
                yield from differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                yield from differences(x, y, f"{path}[{i}]")
        elif a != b:
            yield f"{path} was {a!r}, is {b!r}"

    if found := list(differences(saved, wanted, "")):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise InputError(
            f"{workdir} holds checkpoints of another configuration ({'; '.join(found[:3])}{more});"
            " choose another --workdir, or the same settings to continue"
        )
