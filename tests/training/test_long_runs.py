# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What clusters do to a run: several processes, kills, requests to end, damaged checkpoints, other meshes, hangs.

The long versions, run by hand: `python tests/tools/fault_drill.py`, `python tests/tools/loss_curves.py`.
"""

import dataclasses
import random
import re
import signal
import subprocess
import sys

import clusters
import fault_drill
import loss_curves
import pytest
import tiny
from clusters import Plan

from uso_jax.common.errors import InputError
from uso_jax.hardware import multihost, peers

pytestmark = pytest.mark.slow  # compiles or runs whole programs

STEPS, EVERY = 12, 2


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def straight(cache, tmp_path_factory):
    """Run undisturbed: one process, one device. Two of its steps are profiled."""
    plan = fault_drill.plan(tmp_path_factory.mktemp("straight") / "run", cache, steps=STEPS, every=EVERY)
    clusters.finish(dataclasses.replace(plan, changes=plan.changes | {"profile.start": 3, "profile.steps": 2}))
    return plan


def elsewhere(straight: Plan, workdir, **changes) -> Plan:
    return dataclasses.replace(straight, workdir=workdir / "run", **changes)


def reached(plan: Plan, step: int):
    return lambda: clusters.steps(plan.workdir) and clusters.steps(plan.workdir)[-1] >= step


def test_profile_of_some_steps(straight):
    """Of a process by itself: JAX's profiler hooks into every thread that other tests have left in theirs."""
    (trace,) = (straight.workdir / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000


def test_killed_at_random_moments(straight, tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    plan = elsewhere(straight, tmp_path, pause=0.1)
    drill = fault_drill.kill_at_random(plan, kills=3, seconds=0.2, seed=seed)
    assert drill.kills == 3
    fault_drill.check_equal(plan, straight)


def test_asked_to_end_and_then_damaged(straight, tmp_path):
    plan = elsewhere(straight, tmp_path, pause=0.2)
    running = clusters.Running(plan)
    running.wait_for(reached(plan, 2 * EVERY))
    running.kill(how=signal.SIGTERM)
    assert running.codes() == [0]
    (last,) = re.findall(r"stopped as asked; the same command continues from step (\d+)", running.log())
    # It has saved the step that it was at, whether a checkpoint was due or not.
    *_, oldest, middle, newest = clusters.steps(plan.workdir)
    assert newest == int(last) == max(clusters.losses(plan.workdir))

    truncate(plan.workdir / "checkpoints" / str(newest) / "record")
    truncate(plan.workdir / "checkpoints" / str(middle) / "arrays")
    log = clusters.finish(plan).log()
    for step in (middle, newest):
        where = rf"checkpoint .*/checkpoints/{step} cannot be read: .*; it is moved to .*/damaged/{step}, and the run"
        assert len(re.findall(rf"^{where} goes on from step {oldest}$", log, re.MULTILINE)) == 1, log
    assert {path.name for path in (plan.workdir / "damaged").iterdir()} == {str(middle), str(newest)}
    fault_drill.check_equal(plan, straight)


def truncate(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_on_other_meshes_by_other_processes(straight, tmp_path):
    """Four processes are asked to end, of two that go on one is killed, and one ends the run."""
    mesh = {"mesh.data": 1, "mesh.fsdp": 2, "mesh.sequence": 2}  # two and two read the same rows
    four = elsewhere(straight, tmp_path, processes=4, changes=straight.changes | mesh, pause=0.5)
    running = clusters.Running(four)
    running.wait_for(reached(four, EVERY))
    running.kill(1, signal.SIGTERM)
    assert running.codes() == [0] * 4
    (last,) = {int(re.search(r"continues from step (\d+)", running.log(index)).group(1)) for index in range(4)}
    assert clusters.steps(four.workdir)[-1] == last < STEPS

    two = elsewhere(straight, tmp_path, processes=2, devices=2, pause=0.5)
    running = clusters.Running(two)
    running.wait_for(reached(two, last + 1))
    running.kill(1)
    codes = running.codes()
    assert codes[1] == -signal.SIGKILL and codes[0] != 0
    assert last < clusters.steps(two.workdir)[-1] < STEPS

    one = elsewhere(straight, tmp_path)
    clusters.finish(one)
    fault_drill.check_close(one, straight)
    assert loss_curves.difference(one, straight) < 1e-5


# ---------------------------------------------------------------------------------------------------- hangs


HANG = """
import ctypes, time
from uso_jax.training.fault_tolerance import Watchdog
watchdog = Watchdog(1.0)
for step in range(4):
    time.sleep(0.5)
    watchdog.beat(f"after step {step}")
"""


@pytest.mark.parametrize(
    ("hang", "code", "message"),
    [
        ("time.sleep(100)", 75, r"error: hung: nothing for \d s after step 3 \(config.guard.watchdog_seconds is 1\)"),
        # The interpreter's lock is never given back: not even the thread that watches runs.
        ("ctypes.PyDLL(None).sleep(100)", 1, r"Timeout \(0:00:02\)!"),
        ("watchdog.close(); time.sleep(3)", 0, ""),
    ],
)
def test_a_program_without_a_sign_of_life_ends(hang, code, message):
    run = subprocess.run(
        [sys.executable, "-c", HANG + hang], cwd=tiny.ROOT, capture_output=True, text=True, timeout=100
    )
    assert run.returncode == code
    assert re.search(message, run.stderr) and (not message or 'File "<string>"' in run.stderr), run.stderr


# ---------------------------------------------------------------------------------------------------- environments


SLURM = dict(SLURM_JOB_ID="7", SLURM_STEP_NODELIST="a,b", SLURM_NTASKS="2", SLURM_PROCID="0", SLURM_LOCALID="0")


@pytest.mark.parametrize(
    ("environment", "has_tpu", "name"),
    [
        ({}, False, ""),
        (SLURM, False, "Slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, False, ""),
        ({name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID")}, False, ""),  # no srun
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "4"}, False, "Open MPI"),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, True, "the TPU slice's environment"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, True, ""),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, False, ""),  # a machine that only compiles
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, ""),
        ({}, True, "the TPU's metadata server"),
    ],
)
def test_environments(environment, has_tpu, name):
    assert multihost.detect(environment, has_tpu) == name


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("localhost:1", None, None), {}, "needs --coordinator, --num_processes and --process_id together"),
        (("localhost:1", 2, 2), {}, "--process_id 2 must be between 0 and --num_processes - 1 = 1"),
        (("localhost:1", 2, None), {"JAX_PROCESS_ID": "one"}, "JAX_PROCESS_ID must be a number, not 'one'"),
    ],
)
def test_an_address_that_makes_no_sense(arguments, environment, message, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        multihost.join_processes(*arguments)


ALONE = """
from uso_jax.hardware import multihost
multihost.join_processes("localhost:9", 2, 1, seconds=2)
"""


def test_the_others_do_not_come():
    run = subprocess.run([sys.executable, "-c", ALONE], cwd=tiny.ROOT, capture_output=True, text=True, timeout=100)
    assert run.returncode == peers.LOST and run.stderr.splitlines()[-1].startswith("error: the other processes")
    assert "did not come to the coordinator localhost:9 within 2 s" in run.stderr
