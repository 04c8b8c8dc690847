# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Disturb `scripts/train.py` in two processes in every way, then start it again: it ends with a sentence and goes on.

PYTHONPATH=.:tests/helpers python tests/tools/process_drill.py
"""

import json
import pathlib
import signal
import tempfile
import time

import clusters
import numpy as np
import training_runs
from script_runs import Process, ScriptRun

TWO = (Process(), Process())


def check_equal(run: ScriptRun, straight: ScriptRun) -> None:
    """Check that two runs ended in the same bits and reported the same numbers."""
    got, want = clusters.arrays(run.workdir), clusters.arrays(straight.workdir)
    assert got.keys() == want.keys()
    assert [name for name in want if not np.array_equal(got[name], want[name])] == []
    assert clusters.metrics(run.workdir) == clusters.metrics(straight.workdir)


def check_close(run: ScriptRun, straight: ScriptRun) -> float:
    """Return the largest difference of the parameters of two runs, which is at most 1e-6."""
    got, want = clusters.arrays(run.workdir), clusters.arrays(straight.workdir)
    largest = max(float(np.abs(got[name] - want[name]).max()) for name in want if "params" in name or "ema" in name)
    assert largest <= 1e-6
    return largest


def drill(root: pathlib.Path) -> None:
    """Run every case and print its exit codes, seconds and sentences."""
    cache = root / "compiled"
    straight = ScriptRun(root / "straight" / "run", cache, TWO)
    _show("undisturbed", straight)
    cases = {
        "process 1 killed": lambda run: (run.reach(2), run.kill(1)),
        "process 0 killed": lambda run: (run.reach(2), run.kill(0)),
        "SIGTERM to process 1": lambda run: (run.reach(2), run.kill(1, signal.SIGTERM)),
        "Ctrl-C": lambda run: (run.reach(2), run.kill(0, signal.SIGINT), run.kill(1, signal.SIGINT)),
        "process 1 stopped for good": lambda run: (run.reach(2), run.kill(1, signal.SIGSTOP)),
    }
    for name, disturb in cases.items():
        workdir = root / name.replace(" ", "_") / "run"
        run = ScriptRun(workdir, cache, TWO, pause=0.5)
        disturb(run)
        if "for good" in name:
            run.running[0].wait()
            run.kill(1)
        _show(name, run)
        again = ScriptRun(workdir, cache, TWO)
        _show("  again", again)
        check_equal(again, straight)

    late = ScriptRun(root / "late" / "run", cache, (Process(), Process(late=20)))
    _show("process 1 comes 20 s late", late)
    check_equal(late, straight)
    for name, process in {
        "another learning rate": Process(flags=["--config.stages.joint.learning_rate=0.5"]),
        "no space for process 1": Process(largest_file=48),
    }.items():
        workdir = root / name.replace(" ", "_") / "run"
        _show(name, ScriptRun(workdir, cache, (Process(), process)))
        again = ScriptRun(workdir, cache, TWO)
        _show("  again", again)
        check_equal(again, straight)

    folders = [root / "data0", root / "data1"]
    for folder, count in zip(folders, (9, 8), strict=True):
        folder.mkdir()
        training_runs.json_data(folder, [{"prompt": f"red {number}"} for number in range(count)])
    processes = [Process(folder=folder) for folder in folders]
    _show("other data", ScriptRun(root / "data" / "run", cache, processes, environment={"TINY_DATA": "train.json"}))
    items = json.loads((folders[0] / "train.json").read_text())
    items[3]["target"] = "bad.png"
    (folders[0] / "broken.json").write_text(json.dumps(items))
    processes = [Process(folder=folders[0])] * 2
    environment = {"TINY_DATA": "broken.json"}
    _show("an image that cannot be read", ScriptRun(root / "bad" / "run", cache, processes, environment=environment))


def _show(name: str, run: ScriptRun) -> None:
    codes, seconds = run.codes()
    print(f"{name}: exit codes {codes} after {seconds:.1f} s", flush=True)
    for index in range(len(run.running)):
        for line in run.log(index).replace("\r", "\n").splitlines():
            if line.startswith(("error:", "stopped", "ending", "Traceback")):
                print(f"    {index}: {line[:300]}", flush=True)


if __name__ == "__main__":
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        drill(pathlib.Path(folder))
    print(f"{time.monotonic() - start:.0f} s")
