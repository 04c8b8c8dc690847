# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Kill a run at random moments, during saves and the evaluation at its end too: it must end as if nothing had happened.

PYTHONPATH=.:tests/helpers python tests/tools/fault_drill.py [KILLS [KILLS_OF_EVALUATION]]
"""

import dataclasses
import functools
import json
import pathlib
import random
import sys
import tempfile
import time
from dataclasses import dataclass

import clusters
import numpy as np
from clusters import Plan


@dataclass
class Drill:
    """What happened; `saving` of the kills met a save under way."""

    plan: Plan
    kills: int = 0
    saving: int = 0
    lost: int = 0  # steps done again


def plan(workdir: pathlib.Path, cache: pathlib.Path, *, steps: int, every: int) -> Plan:
    """Return the run that the drills disturb."""
    changes = {"checkpoint.every": every, "checkpoint.keep": 3}
    return Plan(workdir, cache, changes, {"steps": steps, "ema_decay": 0.5})


def kill_at_random(plan: Plan, *, kills: int, seconds: float, seed: int) -> Drill:
    """Kill a run repeatedly, each time within some seconds of its first new step or save, then let it finish."""
    rng, drill = random.Random(seed), Drill(plan)
    while drill.kills < kills:
        before = _state(plan)
        running = clusters.Running(plan)
        running.wait_for(functools.partial(_has_moved, plan, before))
        time.sleep(rng.uniform(0, seconds))
        alive = running.processes[0].is_alive()
        running.kill()
        (code,) = running.codes()
        if not alive or code == 0:
            raise RuntimeError(f"the run ended after {drill.kills} kills; give it more steps")
        saved, done = clusters.steps(plan.workdir), clusters.losses(plan.workdir)
        drill.kills += 1
        drill.saving += any("tmp" in path.name for path in (plan.workdir / "checkpoints").iterdir())
        drill.lost += max(done, default=0) - max(saved, default=0)
    clusters.finish(plan)
    return drill


def evaluated(workdir: pathlib.Path, cache: pathlib.Path) -> Plan:
    """Return a run of a few steps with an evaluation at its end."""
    table = {"evaluation.tables": {"main": {"task": "style_subject", "split": "heldout"}}}
    small = {"evaluation.num_triplets": 8, "evaluation.batch_size": 8, "evaluation.num_steps": 2}
    found = plan(workdir, cache, steps=4, every=2)
    return dataclasses.replace(found, changes=found.changes | table | small)


def kill_during_evaluation(plan: Plan, *, kills: int, seconds: float, seed: int) -> None:
    """Kill a run repeatedly, each time within some seconds of its last step's metrics, then let it finish."""
    rng, path, last = random.Random(seed), plan.workdir / "metrics.jsonl", plan.stage["steps"]
    for number in range(kills):
        before = path.stat().st_mtime_ns if path.exists() else 0
        judging = lambda before=before: last in clusters.losses(plan.workdir) and path.stat().st_mtime_ns != before
        running = clusters.Running(plan)
        running.wait_for(judging)
        running.processes[0].join(rng.uniform(0, seconds))
        running.kill()
        if running.codes() == [0]:
            raise RuntimeError(f"the run ended after {number} kills; choose fewer seconds")
    clusters.finish(plan)


def seconds_of_evaluation(plan: Plan) -> float:
    """Run to the end; return the seconds after the last step's metrics."""
    running = clusters.Running(plan)
    running.wait_for(lambda: plan.stage["steps"] in clusters.losses(plan.workdir))
    begin = time.monotonic()
    assert running.codes() == [0], running.log()
    return time.monotonic() - begin


def check_same_evaluation(disturbed: Plan, straight: Plan) -> None:
    """Check that the figures and images of two runs' evaluations are equal."""
    check_equal(disturbed, straight)
    got, want = (json.loads((one.workdir / "summary.json").read_text()) for one in (disturbed, straight))
    for summary in (got, want):
        assert summary["evaluation"]["after"] and [stage.pop("seconds") for stage in summary["stages"]]
    assert got == want
    got, want = ((one.workdir / "samples" / "before_after.png").read_bytes() for one in (disturbed, straight))
    assert got == want


def _has_moved(plan: Plan, before: tuple) -> bool:
    return _state(plan) != before and bool(clusters.losses(plan.workdir))


def _state(plan: Plan) -> tuple:
    path = plan.workdir / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0, clusters.steps(plan.workdir)


def check_equal(disturbed: Plan, straight: Plan) -> None:
    """Check that two runs ended in the same bits and reported the same numbers."""
    got, want = clusters.arrays(disturbed.workdir), clusters.arrays(straight.workdir)
    assert got.keys() == want.keys()
    assert [name for name in want if not np.array_equal(got[name], want[name])] == []
    assert clusters.metrics(disturbed.workdir) == clusters.metrics(straight.workdir)


def check_close(other: Plan, straight: Plan) -> float:
    """Return the largest difference of the parameters of two runs, which is at most 1e-6."""
    got, want = clusters.arrays(other.workdir), clusters.arrays(straight.workdir)
    assert got.keys() == want.keys()
    largest = max(float(np.abs(got[name] - want[name]).max()) for name in want if "params" in name or "ema" in name)
    assert largest <= 1e-6
    return largest


def main(kills: int, kills_of_evaluation: int) -> None:
    """Run the drills in a temporary folder and print what happened."""
    seed = random.SystemRandom().randrange(10**6)
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        clusters.finish(evaluated(root / "warm" / "run", root / "compiled"))
        straight = evaluated(root / "judged" / "run", root / "compiled")
        seconds = 0.7 * seconds_of_evaluation(straight)
        disturbed = dataclasses.replace(straight, workdir=root / "judged_disturbed" / "run")
        kill_during_evaluation(disturbed, kills=kills_of_evaluation, seconds=seconds, seed=seed)
        check_same_evaluation(disturbed, straight)
        print(
            f"{kills_of_evaluation} kills (seed {seed}) within {seconds:.1f} s of the last step: figures and images"
            " of the evaluation equal the undisturbed run's",
            flush=True,
        )
        straight = plan(root / "straight" / "run", root / "compiled", steps=60, every=2)
        clusters.finish(straight)
        disturbed = dataclasses.replace(straight, workdir=root / "disturbed" / "run")
        drill = kill_at_random(disturbed, kills=kills, seconds=0.6, seed=seed)
        check_equal(disturbed, straight)
        print(
            f"{drill.kills} kills (seed {seed}), {drill.saving} of them during a save; {drill.lost} steps were done"
            " again, none before the last save; parameters, optimizer, average and metrics equal the undisturbed run's"
        )


if __name__ == "__main__":
    main(*(int(text) for text in sys.argv[1:]), *(20, 6)[len(sys.argv) - 1 :])
