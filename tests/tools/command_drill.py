# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Kill an evaluation and a curation at random moments: the same commands continue, and the files are the same.

PYTHONPATH=.:tests/helpers python tests/tools/command_drill.py [KILLS]

The kills are shared out among the commands of `evaluation` and `curation`, as their table says.
"""

import json
import os
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

import benchmark_fixtures as fixtures
import forks

EVALUATE, CURATE = "scripts/evaluate.py", "scripts/curate.py"


@dataclass(frozen=True)
class Command:
    """A command of a user.

    Attributes:
      argv: the script and its arguments.
      kills: how often it is killed before it may end.
    """

    argv: tuple[str, ...]
    kills: int = 0


def evaluation(folder: pathlib.Path, inputs: pathlib.Path) -> list[Command]:
    """Return a whole evaluation: images of mini, scores by tiny networks and a judge, and a report."""
    (inputs / "bench").mkdir(parents=True)
    fixtures.uso_bench(inputs / "bench")
    fixtures.networks(inputs / "networks")
    run = lambda stage, *more: (EVALUATE, stage, "uso_bench", f"--to={folder}", *more)
    scored = [f"--metric_weights={inputs / 'networks'}", "--metrics=clip_i,dino,csd", "--batch_size=1"]
    return [
        Command(run("prepare", f"--data={inputs / 'bench'}", "--size=16", "--limit=4")),
        Command(run("generate", "--model=m", "--num_steps=1", "--batch_size=2"), kills=3),
        Command(run("score", "--model=m", *scored), kills=3),
        Command(run("report"), kills=1),
    ]


def curation(folder: pathlib.Path, inputs: pathlib.Path) -> list[Command]:
    """Return a whole curation with mini as both experts: all steps, the ground truth, a report and the data set."""
    del inputs
    experts = [
        f"--config.curation.{name}.{setting}"
        for name in ("stylize", "destylize")
        for setting in ("weights=mini", "batch_size=4", "settings={'num_steps': 1}")
    ]
    data = ["--config.data.procedural.size=32", "--config.data.procedural.train.length=12"]
    sizes = ["--config.curation.shard_size=2", "--config.curation.score.batch_size=4"]
    keep = ["--config.curation.keep.style=-1.0", "--config.curation.keep.subject=-1.0"]
    run = lambda step: (
        *(CURATE, step, f"--to={folder}", "--config=configs/curation.py"),
        *(*data, *experts, *sizes, *keep),
    )
    return [
        Command(run("run"), kills=4),
        Command(run("truth"), kills=1),
        Command(run("report"), kills=1),
        Command(run("export"), kills=1),
    ]


def finish(command: Command, folder: pathlib.Path, log: pathlib.Path, cache: pathlib.Path) -> float:
    """Run a command to its end, which is a good one; return its seconds from the first thing that it writes on."""
    child = _begin(command, folder, log, cache)
    begin = time.monotonic()
    child.join()
    assert child.exitcode == 0, f"{command.argv}: {child.exitcode}\n{log.read_text()}"
    return time.monotonic() - begin


def kill_at_random(
    command: Command, folder: pathlib.Path, log: pathlib.Path, cache: pathlib.Path, seconds: float, rng: random.Random
) -> int:
    """Kill a command repeatedly, each time within some seconds of the first thing that it writes, then let it finish.

    Returns:
      the number of kills; fewer than planned if the command came to its end before one.
    """
    for number in range(command.kills):
        child = _begin(command, folder, log, cache)
        child.join(rng.uniform(0, seconds))
        if not child.is_alive():
            assert child.exitcode == 0, f"{command.argv}: {child.exitcode}\n{log.read_text()}"
            return number
        child.kill()
        child.join()
    finish(command, folder, log, cache)
    return command.kills


def _begin(command: Command, folder: pathlib.Path, log: pathlib.Path, cache: pathlib.Path):
    """Start a command and wait until it has written something, or ended."""
    before = _state(folder)
    child = forks.start(command.argv, log, log, cache)
    while child.is_alive() and _state(folder) == before:
        time.sleep(0.005)
    return child


def _state(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Return size and time of all files but locks."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            try:
                stat = os.stat(path)
            except FileNotFoundError:  # a temporary one
                continue
            if not name.endswith("lock"):
                found[path] = (stat.st_size, stat.st_mtime_ns)
    return found


def results(folder: pathlib.Path) -> dict[str, bytes | list]:
    """Return the contents of all files, without dates; an evaluation's page has some, and random names in charts."""
    found = {}
    dated = ("report.html", "report.json", "scatter.svg")  # report.csv has the same numbers
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in dated):
        content: bytes | list = path.read_bytes()
        if path.name == "summary.json":
            content = [(name, value) for name, value in json.loads(content).items() if name != "date"]
        found[str(path.relative_to(folder))] = content
    return found


def drill(make, root: pathlib.Path, kills: int, seed: int) -> tuple[int, int]:
    """Run the commands of `make` undisturbed, then disturbed, in the same place; check that the files are the same.

    Returns:
      the number of kills, and of the files.
    """
    folder, cache, rng = root / "work", root / "compiled", random.Random(seed)
    commands: Sequence[Command] = make(folder, root / "inputs")
    for command in commands:
        finish(command, folder, root / "warm.log", cache)  # with compilation
    folder.rename(root / "first")
    took = [finish(command, folder, root / "straight.log", cache) for command in commands]
    want = results(folder)
    folder.rename(root / "straight")
    done, shares, log = 0, sum(one.kills for one in commands), root / "disturbed.log"
    for command, seconds in zip(commands, took, strict=True):
        share = Command(command.argv, round(command.kills * kills / shares))
        done += kill_at_random(share, folder, log, cache, seconds / (share.kills + 2), rng)
    got = results(folder)
    assert got.keys() == want.keys(), sorted(got.keys() ^ want.keys())
    other = [name for name in want if got[name] != want[name]]
    assert not other, {name: (str(want[name])[-600:], str(got[name])[-600:]) for name in other[:4]} | {"all": other}
    return done, len(want)


def main(kills: int) -> None:
    """Run both drills in temporary folders and print what happened."""
    seed = random.SystemRandom().randrange(10**6)
    for make in (evaluation, curation):
        with tempfile.TemporaryDirectory() as folder:
            begin = time.monotonic()
            done, files = drill(make, pathlib.Path(folder), kills, seed)
            print(
                f"{make.__name__}: {done} kills (seed {seed}), {files} files equal the undisturbed ones,"
                f" {time.monotonic() - begin:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
