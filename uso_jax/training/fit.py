# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`fit` runs every stage of a configuration, from its parameters to its summary, or continues where it stopped."""

import contextlib
import errno
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax

from uso_jax.common import atomic_files, compat, locks, progress, run_file
from uso_jax.common.errors import InputError
from uso_jax.hardware import peers
from uso_jax.parallel import sharding
from uso_jax.training import precompute, preflight
from uso_jax.training.checkpoints import Checkpoints
from uso_jax.training.config import TrainConfig
from uso_jax.training.evaluation import Evaluation
from uso_jax.training.fault_tolerance import NotFinite, StopRequest, Watchdog
from uso_jax.training.hooks import evaluate_before
from uso_jax.training.init import describe_params, initial_params
from uso_jax.training.loggers import Identity
from uso_jax.training.loop import run_stage
from uso_jax.training.metric_writer import Metrics
from uso_jax.training.origin import Origin, check_origin
from uso_jax.training.profiling import ProfileWindow, Speed
from uso_jax.training.record import RunRecord
from uso_jax.training.resume import Resume, check_same_config
from uso_jax.training.run import Run
from uso_jax.training.run_data import RunData
from uso_jax.weights import quantization


def fit(
    config: TrainConfig,
    workdir: str | pathlib.Path,
    init_from: str | pathlib.Path | None = None,
    arguments: Sequence[str] = (),
) -> dict:
    """Run or resume every stage; write checkpoints, metrics, sample grids and summary.json; return the summary.

    A resumed run starts like a fresh one. Its record then says which stage and step to continue, the arrays of the
    checkpoint replace the trained parameters, the optimizer's state and the average, and the data iterator moves to
    where it was.

    Args:
      config: the configuration; a run only continues with the same one.
      workdir: the directory of the run.
      init_from: the directory of another run, whose trained parameters a new run starts from (training.origin).
      arguments: the command's, which run.json keeps for programs that continue the run.

    Raises:
      InputError: bad data, sizes or storage, a checkpoint of another configuration, or a loss that is not finite.
      Stopped: SIGTERM came, and a checkpoint is written.
    """
    workdir = pathlib.Path(workdir)
    index = compat.coordinator()[2]  # the lock comes before the devices, which another run may hold
    if index:
        progress.silence()
    with contextlib.ExitStack() as stack:
        if not preflight.can_write(workdir) and (summary := _finished(config, workdir)) is not None:
            return summary
        stack.enter_context(_explained(workdir))
        preflight.check_workdir(workdir)
        lock = stack.enter_context(locks.hold(workdir)) if index == 0 else None
        return _fit(config, workdir, init_from, arguments, lock, stack)


def _fit(
    config: TrainConfig,
    workdir: pathlib.Path,
    init_from: str | pathlib.Path | None,
    arguments: Sequence[str],
    lock: locks.Lock | None,
    stack: contextlib.ExitStack,
) -> dict:
    mesh = sharding.make_mesh(config.mesh)
    system = preflight.check(config, mesh, workdir)
    peers.agree(lambda: preflight.facts(config, workdir))
    if config.data.encode_first:
        config = precompute.encode_first(config, workdir / "features")
        system = preflight.check(config, mesh, workdir)
    shardings = sharding.shardings(mesh, config.rules, system.shapes)
    if config.log_placement and jax.process_index() == 0:
        print(*sharding.describe_placement(mesh, config.rules, system.shapes), sep="\n", flush=True)
    lr_multipliers = [stage.lr_multipliers(system.shapes) for stage in config.run_stages]
    trained = set().union(*lr_multipliers)

    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep, config.checkpoint.keep_every)
    stack.callback(checkpoints.close)
    resume = Resume(config, system, shardings, trained, checkpoints, workdir)
    found, origin = resume.newest(), None
    latest, record, saved = found or (0, RunRecord(config.fingerprint()), None)
    if found is not None:
        check_origin(record.init_from, init_from, workdir)
    elif init_from is not None:
        stored = describe_params(config, system, shardings, trained)
        quantised = {path for path in system.shapes if quantization.scale_path(path) in stored}
        origin = Origin(init_from, system.shapes, quantised)
        record.init_from = origin.facts()
    trained |= record.inherited
    checkpoints.remove_old()
    if record.is_finished(config.run_stages):
        return _write_summary(config, record, workdir)
    if lock is not None and arguments:
        run_file.write(workdir, arguments, {stage.name: stage.steps for stage in config.run_stages})
    run = Run(
        config=config,
        system=system,
        mesh=mesh,
        shardings=shardings,
        trained=trained,
        workdir=workdir,
        lock=lock,
        checkpoints=checkpoints,
        metrics=Metrics(Identity(workdir, config.project, config.fingerprint(), latest), config.loggers),
        speed=Speed(workdir, record.productive_seconds),
        watchdog=stack.enter_context(contextlib.closing(Watchdog(config.guard.watchdog_seconds))),
        stop=stack.enter_context(contextlib.closing(StopRequest())),
        profile=ProfileWindow(config.profile, workdir / "profile"),
        data=RunData(config, workdir),
        record=record,
    )
    stack.callback(checkpoints.close)  # first while the watchdog still watches: a save in progress may hang
    stack.callback(run.metrics.close)
    stack.callback(run.profile.close)
    stack.enter_context(peers.told())  # before the others close, which may wait for other processes
    stack.enter_context(_explained(workdir))
    with jax.set_mesh(mesh):
        _train(run, resume, lr_multipliers, saved, origin)
    with progress.phase("saving"):
        checkpoints.wait()
    return _write_summary(config, run.record, workdir)


def _train(
    run: Run, resume: Resume, lr_multipliers: Sequence[dict[str, float]], saved: dict | None, origin: Origin | None
) -> None:
    """Make the parameters and train all stages from the one on record; go back after numbers that are not finite."""
    run.data.source(run.record.stage, run.record)  # before the weights are read, which may take minutes
    params = initial_params(run.config, run.system, run.shardings, run.trained)
    if origin is not None:
        params |= origin.read(describe_params(run.config, run.system, run.shardings, run.trained))
    run.watchdog.beat("after reading and drawing parameters")
    if run.config.evaluates:
        run.evaluation = Evaluation(run.config, run.system, run.mesh)
        if run.record.evaluation is None:
            with progress.phase("judging the model before training"):
                evaluate_before(run, params)
    index = run.record.stage
    while index < len(run.config.run_stages):
        if index > run.record.stage:
            run.record.begin_stage(index)
        try:
            params = run_stage(run, index, params, lr_multipliers[index], saved)
            index, saved = index + 1, None
        except NotFinite as bad:
            saved = _roll_back(run, resume, index, bad)
            index = run.record.stage


def _roll_back(run: Run, resume: Resume, index: int, bad: NotFinite) -> dict:
    """Go back to the last checkpoint, and past the bad batch in the data; return the checkpoint's arrays.

    Batches between the checkpoint and the bad one are left out too, as they led there.

    Raises:
      InputError: there were as many roll-backs as the configuration allows, or there is no checkpoint.
    """
    done = run.record.rollbacks or []
    run.checkpoints.wait()
    found = resume.newest() if len(done) < run.config.guard.max_rollbacks else None
    if found is None:
        raise bad.give_up(run.checkpoints.latest(), len(done))
    step, run.record, saved = found
    run.record.rollbacks = [*done, {"stage": bad.stage, "step": bad.step, "to": step}]
    # The bad batch's stage may not have begun in the checkpoint.
    run.positions[index] = bad.position
    run.speed.productive = run.record.productive_seconds
    run.metrics.rewind(step)
    progress.say(f"{bad.sentence}; going on from step {step} without the batches up to it", sys.stderr)
    return saved


@contextlib.contextmanager
def _explained(workdir: pathlib.Path) -> Iterator[None]:
    """Turn an error of the file system into an InputError. Checkpoints explain themselves; all other files do not."""
    try:
        yield
    except (BrokenPipeError, ConnectionError, TimeoutError):  # of a terminal or of data, not of a disk
        raise
    except OSError as error:
        remedy = "Free some space" if error.errno in _FULL else "Check the disk, the path and its permissions"
        raise InputError(
            f"cannot write to {error.filename or workdir}: {error.strerror or error}. {remedy}, and run the same"
            " command to continue"
        ) from error


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _finished(config: TrainConfig, workdir: pathlib.Path) -> dict | None:
    """Return the summary of a finished run in a directory that cannot be written, or None."""
    newest = Checkpoints.newest_record(workdir / "checkpoints")
    if newest is None:
        return None
    record = RunRecord.from_json(newest)
    check_same_config(record.config, config.fingerprint(), workdir)
    return record.summary(config.variant) if record.is_finished(config.run_stages) else None


def _write_summary(config: TrainConfig, record: RunRecord, workdir: pathlib.Path) -> dict:
    """Write summary.json atomically, unless it is there already, and return it."""
    summary = record.summary(config.variant)
    path, text = workdir / "summary.json", (json.dumps(summary, indent=2) + "\n").encode()
    if jax.process_index() == 0 and not (path.is_file() and path.read_bytes() == text):
        atomic_files.write_file(path, text)
    return summary
