# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a training's directory says of it: state, progress, curves and sample grids. Nothing in it is changed."""

import math
import pathlib
import re
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

from uso_jax.common import run_file, untrusted
from uso_jax.common.errors import InputError
from uso_jax.weights import training_runs

State = Literal["starting", "running", "stopping", "finished", "stopped", "failed"]
LOG = "log.txt"
POINTS = 200  # of a curve
_TAIL = 1 << 16  # bytes of the log that are read
_GRIDS = 6
_ENDING = "ending after this step and a save"  # uso_jax.training.fault_tolerance
_SPACE = 1 << 20  # bytes; less is a full disk
_STOPPED = (0, 130, -signal.SIGINT)  # exit codes of a run that ended as asked; the last one while it was starting


class _Metrics(TypedDict):
    step: int
    loss: NotRequired[float]
    heldout_loss: NotRequired[float]
    learning_rate: NotRequired[float]


class _Speed(TypedDict):
    step_seconds: float


class _Stage(TypedDict):
    steps: int
    heldout_loss_before: NotRequired[float | None]


class _Config(TypedDict):
    stages: list[_Stage]


class _Record(TypedDict):
    config: _Config
    stages: NotRequired[list[_Stage]]


Curve = list[tuple[float, float]]
"""Points (step, value)."""


@dataclass(frozen=True)
class RunView:
    """A training at one moment.

    Attributes:
      step: the last one with a metric; of a run that has ended, with a checkpoint.
      steps: of the whole run; 0: unknown.
      phase: what the run does, or why it ended.
      remaining: seconds of train steps; None: unknown.
      arguments: of the uso-train that continues it; (): unknown.
      curves: "training loss", "held-out loss" and "learning rate", those that there are.
      grids: files of sample grids, newest first.
      saved: whether there is a checkpoint.
    """

    state: State
    step: int
    steps: int
    phase: str
    remaining: float | None
    arguments: tuple[str, ...]
    curves: dict[str, Curve]
    grids: tuple[pathlib.Path, ...]
    saved: bool


def read_run(workdir: pathlib.Path, *, runs: bool, code: int | None = None) -> RunView:
    """Read a training's directory.

    Args:
      workdir: the directory.
      runs: whether its process runs.
      code: exit code of the process, if it has ended and is known.

    Raises:
      InputError: there is no training.
    """
    if not workdir.is_dir():
        raise InputError(f"there is no training in {workdir}; choose one from the list")
    log = _last_attempt(workdir / LOG)
    begun = _run_file(workdir)
    record = _record(workdir)
    lines = _read_lines(workdir / "metrics.jsonl", _Metrics)
    curves = _curves(lines, record)
    saved = int(training_runs.record_file(workdir).parents[1].name) if training_runs.is_training(workdir) else None
    step = max((line["step"] for line in lines), default=0) if saved is None or runs else saved
    steps = sum(begun["stages"].values()) if begun else sum(one["steps"] for one in record["config"]["stages"])
    finished = (workdir / "summary.json").is_file()
    state, phase = _state(workdir, log, runs=runs, code=code, finished=finished, begun=bool(begun or lines))
    seconds = _read_lines(workdir / "speed.jsonl", _Speed)
    remaining = (steps - step) * seconds[-1]["step_seconds"] if runs and seconds and steps else None
    return RunView(
        state=state,
        step=steps if state == "finished" and steps else step,
        steps=steps,
        phase=phase,
        remaining=remaining,
        arguments=tuple(begun["arguments"]) if begun else (),
        curves=curves,
        grids=_grids(workdir / "samples"),
        saved=saved is not None,
    )


def is_ending(workdir: pathlib.Path) -> bool:
    """Return whether a run has said that it ends after the step under way."""
    return any(_ENDING in line for line in _last_attempt(workdir / LOG))


def _state(
    workdir: pathlib.Path, log: Sequence[str], *, runs: bool, code: int | None, finished: bool, begun: bool
) -> tuple[State, str]:
    """Return the state, and the phase or the reason of the end."""
    last = _phase(log)
    if runs:
        if any(_ENDING in line for line in log):
            return "stopping", last
        return ("running" if begun and last else "starting"), last
    if finished:
        return "finished", ""
    if errors := [line.removeprefix("error: ") for line in log if line.startswith("error: ")]:
        return "failed", errors[-1]
    if code is None or code in _STOPPED:
        return "stopped", ""
    if shutil.disk_usage(workdir).free < _SPACE:
        return "failed", f"the disk of {workdir} is full; free some space, then resume"
    return "failed", f"the process ended with exit code {code}; {workdir / LOG} says more"


def _phase(log: Sequence[str]) -> str:
    """Return the last line of progress without its times, such as "adapters 0/6, compiling the train step"."""
    found = [line for line in log if re.search(r" \[\d+:\d\d", line)]
    if not found:
        return ""
    return re.sub(r"\s*\[[^\]]*\]\s*$", "", found[-1])


# ---------------------------------------------------------------------------------------------------- files


def _last_attempt(path: pathlib.Path) -> list[str]:
    """Return the lines of the log since the last start, as far as the end of the file holds them."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - _TAIL, 0))
            text = file.read(_TAIL).decode("utf-8", "replace")
    except OSError:
        return []
    lines = text.replace("\r", "\n").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
    return lines[starts[-1] + 1 :] if starts else lines


def _run_file(workdir: pathlib.Path) -> run_file.RunFile | None:
    try:
        return run_file.read(workdir)
    except InputError:
        return None


def _record(workdir: pathlib.Path) -> _Record:
    """Return the record of the last checkpoint; without one, that of a run of no stages."""
    if training_runs.is_training(workdir):
        try:
            return untrusted.json(training_runs.record_file(workdir), _Record, nan=True)
        except InputError:  # it is just being replaced by the next one
            pass
    return _Record(config=_Config(stages=[]))


def _read_lines(path: pathlib.Path, schema: type) -> list:
    """Return the lines that are whole; the run may be writing the last one."""
    if not path.is_file():
        return []
    return [line for _, line in untrusted.json_lines(path, schema, nan=True, damaged=lambda error: None)]


def _grids(folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
    found = []
    for path in (*folder.glob("*.png"), *folder.glob("own/*.png")):
        try:
            found.append((path.stat().st_mtime, path))
        except OSError:  # it is just being replaced
            continue
    return tuple(path for _, path in sorted(found, reverse=True)[:_GRIDS])


def _curves(lines: Sequence[_Metrics], record: _Record) -> dict[str, Curve]:
    first = next(iter(record.get("stages", ())), None)
    before = first.get("heldout_loss_before") if first else None
    names = {"loss": "training loss", "heldout_loss": "held-out loss", "learning_rate": "learning rate"}
    found = {}
    for key, name in names.items():
        points = [(float(line["step"]), float(line[key])) for line in lines if key in line]
        if key == "heldout_loss" and before is not None and points:
            points.insert(0, (0.0, float(before)))
        points = [point for point in points if math.isfinite(point[1])]
        if points:
            found[name] = thin(points)
    return found


def thin(points: Curve) -> Curve:
    """Return at most `POINTS` points; each is the mean of as many neighbours."""
    size = math.ceil(len(points) / POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    mean = lambda values: sum(values) / len(values)
    return [(mean([step for step, _ in group]), mean([value for _, value in group])) for group in groups]
