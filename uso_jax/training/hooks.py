# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a stage does between train steps: sample grids, held-out losses, the evaluation, checkpoints and speeds.

Hooks run in the order in which `stage_hooks` lists them. One that ends the stage early makes every later one run.
"""

import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import numpy as np

from uso_jax.common import atomic_files
from uso_jax.evaluation import verdicts
from uso_jax.images import contact_sheet
from uso_jax.params import Params
from uso_jax.training.run import Run
from uso_jax.training.step import TrainState
from uso_jax.training.validation import Validator, is_cheating

BEFORE = "before.npz"  # the evaluation's images before training, by table


@dataclass
class StepInfo:
    """A train step that is done."""

    step: int  # of the stage, from 1
    data: dict  # position of the data after the step's batch
    asked: bool  # whether the program was asked to end
    last: bool  # whether the stage ends here; a hook may set it


@dataclass(frozen=True)
class Hook:
    """A function that is called after some of a stage's train steps, with the step and the parts of the parameters."""

    name: str  # what is shown while it lasts
    call: Callable[[StepInfo, TrainState, Params], None]  # (step, state, frozen parameters)
    every: int  # steps; 0: never by count
    on_last: bool = True  # also after the last step of the stage
    also: Callable[[StepInfo], bool] = lambda info: False  # further steps
    blocking: bool = True
    """Whether it reads the parameters: every loss up to the step must be known to be finite before, and the time that
    it takes is no training time."""

    def is_due(self, info: StepInfo) -> bool:
        """Return whether the hook is to be called after a step."""
        return (self.on_last and info.last) or bool(self.every and info.step % self.every == 0) or bool(self.also(info))


def stage_hooks(run: Run, index: int, validator: Validator, say: Callable[[str], object]) -> list[Hook]:
    """Return the hooks of a stage, in their order; the stage's clock starts now.

    Args:
      run: the run.
      index: which of its stages.
      validator: the stage's held-out batches.
      say: shows one line to the user.
    """
    config, record = run.config, run.record
    stage, stage_record, offset = config.run_stages[index], record.stages[index], run.first_step(index)
    earlier, started = record.seconds, time.monotonic()

    def grid(info: StepInfo, state: TrainState, frozen: Params) -> None:
        params = frozen | state.result
        path = run.workdir / "samples" / f"{offset + info.step:06d}_{stage.name}.png"
        validator.grid(params, path)
        if jax.process_index() == 0:
            run.metrics.image(offset + info.step, stage.name, path)
        if stage.scored is None or info.step < stage.scored.start:
            return
        if validate_reward(run, index, validator, params, info.step):
            stage_record.stopped, info.last = info.step, True
            say(f"{stage.name}: a judge fell while the reward rose; stopped at step {info.step} (docs/reward.md)")

    def heldout_loss(info: StepInfo, state: TrainState, frozen: Params) -> None:
        loss = validator.loss(frozen | state.result, state.anchor)
        run.metrics.write(offset + info.step, stage.name, {"heldout_loss": loss})
        stage_record.heldout_loss_after = loss

    def evaluation(info: StepInfo, state: TrainState, frozen: Params) -> None:
        del info
        evaluate_after(run, index, frozen | state.result)

    def checkpoint(info: StepInfo, state: TrainState, frozen: Params) -> None:
        seconds = earlier + time.monotonic() - started
        record.step, record.data, record.seconds = info.step, info.data, seconds
        stage_record.seconds = round(seconds, 1)
        run.save(state, frozen)

    def speed(info: StepInfo, state: TrainState, frozen: Params) -> None:
        del state, frozen
        run.speed.write(run.metrics, offset + info.step, stage.name)

    # The last images without the reward show what it changes.
    reward_starts = lambda info: stage.reward is not None and info.step == stage.reward.start
    hooks = [
        Hook("drawing samples", grid, every=config.heldout.grid_every, also=reward_starts),
        Hook("validating", heldout_loss, every=config.heldout.every),
        Hook("saving", checkpoint, every=config.checkpoint.every, also=lambda info: info.asked),
        Hook("writing speeds", speed, every=config.log_every, blocking=False),
    ]
    if run.evaluation is not None:
        hooks.insert(2, Hook("judging", evaluation, every=0))
    return hooks


def validate_reward(run: Run, index: int, validator: Validator, params: Params, step: int) -> bool:
    """Record the rewards and judges of held-out images; return whether the stage should end."""
    stage, figures = run.config.run_stages[index], validator.rewards(params)
    run.metrics.write(run.first_step(index) + step, stage.name, figures)
    stage_record = run.record.stages[index]
    stage_record.reward = [*(stage_record.reward or []), {"step": step, **figures}]
    return is_cheating(stage.scored, stage_record.reward)


def evaluate_before(run: Run, params: Params) -> None:
    """Record every table's figures of the model before training and of the references; keep the model's images.

    Where the source tells styles in words, what the model makes of them is the row "told_in_words": the most that an
    alignment with its text can reach.
    """
    before, told = run.evaluation.sample(params), run.evaluation.told(params)
    kept = {f"{name}/before": images for name, images in before.items()}
    kept |= {f"{name}/told_in_words": images for name, images in told.items()}
    if jax.process_index() == 0:
        with atomic_files.beside(run.workdir / BEFORE) as temporary, temporary.open("wb") as file:
            np.savez(file, **kept)
    known = run.evaluation.baselines(params)
    figures = run.evaluation.figures(params, before)
    judged = {"before": run.evaluation.verdicts(before)}
    run.record.evaluation = {name: {"before": found} | known[name] for name, found in figures.items()}
    for name, found in run.evaluation.figures(params, told).items():
        run.record.evaluation[name]["told_in_words"] = found
    judged["told_in_words"] = run.evaluation.verdicts(told)
    if jax.process_index() == 0:
        verdicts.save(run.workdir, judged)


def evaluate_after(run: Run, index: int, params: Params) -> None:
    """Record every table's figures of the model after a stage, and write its images beside those from before."""
    after = run.evaluation.sample(params)
    figures = run.evaluation.figures(params, after)
    run.record.stages[index].evaluation = figures
    for name, found in figures.items():
        run.record.evaluation[name]["after"] = found
    if jax.process_index():
        return
    try:
        with np.load(run.workdir / BEFORE, allow_pickle=False) as found:
            made = {name: _of_table(found, name) | {"after": after[name]} for name in run.evaluation.tables}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        print(
            f"{run.workdir / BEFORE} cannot be read ({error}); images before and after are not shown side by side",
            file=sys.stderr,
        )
        return
    verdicts.save(run.workdir, {"after": run.evaluation.verdicts(after)})
    columns = {name: table.columns(made[name]) for name, table in run.evaluation.tables.items()}
    kept = {f"{name}/{key}": images for name, found in columns.items() for key, images in found.items()}
    with atomic_files.beside(run.workdir / contact_sheet.COLUMNS) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **kept)
    for name, found in columns.items():
        sheet = contact_sheet.draw({key: images[: run.config.heldout.grid_rows] for key, images in found.items()})
        suffix = "" if name == "main" else f"_{name}"
        contact_sheet.save(sheet, run.workdir / "samples" / f"before_after{suffix}.png")


def _of_table(kept: Mapping[str, np.ndarray], table: str) -> dict[str, np.ndarray]:
    """Return the images of one table that were made before training, by row."""
    return {key.partition("/")[2]: kept[key] for key in kept if key.startswith(f"{table}/")}
