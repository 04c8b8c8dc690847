# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One `fit` runs every stage of a configuration, from its parameters to its summary, or resumes where it stopped."""

import errno
import json
import pathlib
import sys

import jax
from tqdm import tqdm

from uso_jax.common import atomic_files
from uso_jax.common.errors import InputError
from uso_jax.parallel import sharding
from uso_jax.training import preflight
from uso_jax.training.checkpoints import Checkpoints
from uso_jax.training.config import TrainConfig
from uso_jax.training.evaluation import Evaluation
from uso_jax.training.fault_tolerance import NotFinite, StopRequest, Watchdog
from uso_jax.training.init import initial_params
from uso_jax.training.loop import Run, evaluate_before, run_stage
from uso_jax.training.metric_writer import Metrics
from uso_jax.training.profiling import ProfileWindow, Speed
from uso_jax.training.resume import Resume, fresh_record, is_finished


def fit(config: TrainConfig, workdir: str | pathlib.Path) -> dict:
    """Run or resume every stage; write checkpoints, metrics, sample grids and summary.json; give the summary.

    Raises:
      InputError: bad data, sizes or storage, a checkpoint of another configuration, or a loss that is not finite.
      Stopped: SIGTERM came, and a checkpoint is written.
    """
    workdir = pathlib.Path(workdir)
    mesh = sharding.make_mesh(config.mesh)
    system = preflight.check(config, mesh, workdir)
    where = sharding.shardings(mesh, config.rules, system.shapes)
    rates = [stage.lr_multipliers(system.shapes) for stage in config.stages]
    trained = set().union(*rates)

    # Resume: 1. the record says which stage and step; 2. parameters start as in a fresh run; 3. the checkpoint replaces
    # the trained ones, the optimizer and the average; 4. the data iterator moves to where it was.
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint_keep, config.checkpoint_keep_every)
    resume = Resume(config, system, where, trained, checkpoints, workdir)
    latest, record, saved = resume.newest() or (0, fresh_record(config), None)
    if is_finished(config, record):
        checkpoints.close()
        return _write_summary(config, record, workdir)
    run = Run(
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
            run.watchdog.beat("after reading and drawing parameters")
            if config.evaluation is not None:
                run.evaluation = Evaluation(config, system, mesh)
                if "evaluation" not in record:
                    evaluate_before(run, params)
            index = record["stage"]
            while index < len(config.stages):
                if index > run.record["stage"]:
                    run.record |= {"stage": index, "step": 0, "data": None, "seconds": 0.0}
                try:
                    params = run_stage(run, index, params, rates[index], saved)
                    index, saved = index + 1, None
                except NotFinite as bad:
                    saved = _roll_back(run, resume, index, bad)
                    index = run.record["stage"]
        checkpoints.wait()
        return _write_summary(config, run.record, workdir)
    except OSError as error:
        # Checkpoints explain themselves; metrics, images and the summary can meet a full disk too.
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


def _roll_back(run: Run, resume: Resume, index: int, bad: NotFinite) -> dict:
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
        atomic_files.write_file(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary
