# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Whole runs in separate processes: several at once, on meshes of several devices, that can be killed."""

import contextlib
import faulthandler
import json
import os
import pathlib
import signal
import socket
import sys
import time
from dataclasses import dataclass, field

import forks
import jax
import numpy as np
import orbax.checkpoint as ocp
import tiny
import xla_flags

from uso_jax.common.errors import InputError
from uso_jax.hardware import multihost, peers
from uso_jax.training.fault_tolerance import Stopped, Watchdog
from uso_jax.training.fit import fit

_SECONDS = 900  # after which a test gives up on a process


@dataclass(frozen=True)
class Plan:
    """A run of tiny, with its number of processes and of virtual devices per process."""

    workdir: pathlib.Path
    cache: pathlib.Path  # of compiled programs
    changes: dict = field(default_factory=dict)
    stage: dict = field(default_factory=dict)
    processes: int = 1
    devices: int = 1
    pause: float = 0.0  # seconds after each step, so that there is time to disturb it


class Running:
    """The processes of a run."""

    def __init__(self, plan: Plan):
        plan.workdir.mkdir(parents=True, exist_ok=True)
        self.plan = plan
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        self.processes = [forks.process(_main, (plan, i, address)) for i in range(plan.processes)]
        for process in self.processes:
            process.start()

    def log(self, index: int = 0) -> str:
        """Return the stdout and stderr of a process."""
        return _log(self.plan, index).read_text()

    def wait_for(self, condition) -> None:
        """Wait until a condition holds or a process has ended."""
        end = time.monotonic() + _SECONDS
        while not condition() and all(process.is_alive() for process in self.processes):
            assert time.monotonic() < end, self.log()
            time.sleep(0.01)

    def kill(self, index: int = 0, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a process a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.processes[index].pid, how)

    def codes(self) -> list[int]:
        """Wait for all processes and give their exit codes; none outlives this."""
        end = time.monotonic() + _SECONDS
        try:
            for process in self.processes:
                process.join(max(end - time.monotonic(), 0))
            return [process.exitcode for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.join()


def finish(plan: Plan) -> Running:
    """Run to the end; every process ends well."""
    running = Running(plan)
    codes = running.codes()
    assert codes == [0] * plan.processes, f"{codes}\n{running.log()}"
    return running


def losses(workdir: pathlib.Path) -> dict[int, float]:
    """Return the loss of every step from the metrics of the run."""
    return {line["step"]: line["loss"] for line in metrics(workdir) if "loss" in line}


def metrics(workdir: pathlib.Path) -> list[dict]:
    """Return the lines of the metrics of a run; the last may be incomplete."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def steps(workdir: pathlib.Path) -> list[int]:
    """Return the steps of the complete checkpoints of a run."""
    found = (workdir / "checkpoints").glob("*")
    return sorted(int(path.name) for path in found if path.name.isdecimal())


def arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the arrays of the last checkpoint of a run."""
    path = workdir / "checkpoints" / str(steps(workdir)[-1]) / "arrays"
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(path).item_metadata.tree
        whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        found = reader.restore(path, restore_args=whole)
    return {jax.tree_util.keystr(key): np.asarray(value) for key, value in jax.tree_util.tree_leaves_with_path(found)}


def _log(plan: Plan, index: int) -> pathlib.Path:
    return plan.workdir.with_name(f"{plan.workdir.name}.{index}.log")


def _main(plan: Plan, index: int, address: str) -> None:
    log = _log(plan, index)
    log.unlink(missing_ok=True)
    forks.redirect(log, log)
    faulthandler.enable(sys.stderr)
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags.flags(plan.devices),
    }
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_default_matmul_precision", "highest")
    next(tiny.compile_cheaply(plan.cache))
    sys.exit(_run(plan, index, address))


def _run(plan: Plan, index: int, address: str) -> int:
    Watchdog.beat = lambda self, where: time.sleep(plan.pause * where.startswith("after step"))
    try:
        if plan.processes > 1:
            multihost.join_processes(address, plan.processes, index)
        with peers.together():
            fit(tiny.config("joint", changes=plan.changes, **plan.stage), plan.workdir)
        code = 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except Stopped as stopped:
        print(stopped.sentence)
        code = stopped.code
    if plan.processes > 1:
        jax.distributed.shutdown()  # which multiprocessing would leave out
    return code
