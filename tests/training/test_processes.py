# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`scripts/train.py` itself: two runs in one directory, several processes that fail together, Ctrl-C.

The long version, with every fault: `python tests/tools/process_drill.py`.
"""

import signal
import time

import clusters
import process_drill
import pytest
import training_runs
from script_runs import Process, ScriptRun

from uso_jax.hardware import peers

pytestmark = pytest.mark.slow  # runs whole programs


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def straight(cache, tmp_path_factory):
    """Run undisturbed: one process."""
    run = ScriptRun(tmp_path_factory.mktemp("straight") / "run", cache)
    assert run.codes()[0] == [0], run.log()
    return run


def test_a_second_run_in_one_directory_ends_and_touches_nothing(straight, cache, tmp_path):
    first = ScriptRun(tmp_path / "run", cache, pause=0.5)
    first.reach(2)
    first.kill(how=signal.SIGSTOP)  # so that nothing changes meanwhile
    before = training_runs.files(first.workdir)
    start = time.monotonic()
    # The first one may hold the devices: the second ends before it looks for any.
    second = ScriptRun(tmp_path / "run", cache, environment={"JAX_PLATFORMS": "none"})
    assert second.codes()[0] == [2]
    assert time.monotonic() - start < 60  # 5 seconds on a machine that does nothing else
    assert training_runs.files(first.workdir) == before
    first.kill(how=signal.SIGCONT)
    said = second.log()
    assert said.count("error:") == 1 and f"is being written by process {first.running[0].pid}" in said
    assert first.codes()[0] == [0], first.log()
    process_drill.check_equal(first, straight)


def test_ctrl_c_saves_and_ends(straight, cache, tmp_path):
    run = ScriptRun(tmp_path / "run", cache, pause=0.5)
    run.reach(2)
    run.kill(how=signal.SIGINT)
    assert run.codes()[0] == [130]
    assert "Traceback" not in run.log() and f"continues from step {run.steps()[-1]}" in run.log()
    assert run.steps()[-1] == max(clusters.losses(run.workdir))

    twice = ScriptRun(tmp_path / "run", cache, pause=20.0)
    twice.wait_for(lambda: max(clusters.losses(run.workdir)) > run.steps()[-1])
    twice.kill(how=signal.SIGINT)
    time.sleep(0.5)
    twice.kill(how=signal.SIGINT)
    codes, seconds = twice.codes()
    assert codes == [130] and seconds < 10 and "ended at once" in twice.log()
    again = ScriptRun(tmp_path / "run", cache)
    assert again.codes()[0] == [0]
    process_drill.check_equal(again, straight)


def test_other_settings_in_one_process(cache, tmp_path):
    other = Process(flags=["--config.stages.joint.learning_rate=0.5"])
    run = ScriptRun(tmp_path / "run", cache, [Process(), other])
    codes, _ = run.codes()
    assert codes == [2, 2]
    for index in (0, 1):
        assert f"error: process {1 - index} does not work with the same as process {index}" in run.log(index)
        assert "config.stages.joint.learning_rate is" in run.log(index)


@pytest.mark.parametrize("index", [0, 1])
def test_one_of_two_processes_is_killed(index, straight, cache, tmp_path):
    run = ScriptRun(tmp_path / "run", cache, [Process(), Process()], pause=0.5)
    run.reach(2)
    run.kill(index)
    codes, seconds = run.codes()
    assert codes[index] == -signal.SIGKILL and codes[1 - index] == peers.LOST, run.log(1 - index)
    assert seconds < 60 and f"error: process {index}" in run.log(1 - index)
    if index == 1:
        again = ScriptRun(tmp_path / "run", cache, [Process(), Process()])
        assert again.codes()[0] == [0, 0], again.log()
        process_drill.check_close(again, straight)


def test_an_error_of_one_process_ends_both(cache, tmp_path):
    """Process 1 cannot write its part of a checkpoint."""
    run = ScriptRun(tmp_path / "run", cache, [Process(), Process(largest_file=48)])
    codes, _ = run.codes()
    assert codes == [2, 2], run.log(0) + run.log(1)
    assert "File too large" in run.log(1) and "File too large" in run.log(0)
    assert "Traceback" not in run.log(1)
