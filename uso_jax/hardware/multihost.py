# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Multi-host start-up: detect the cluster environment and join the other processes.

Every process calls `join_processes` before it asks JAX for devices. An explicit address takes precedence over the
cluster environment. Without either, the process runs alone. Recipes: docs/clusters.md.
"""

import importlib.util
import os
import pathlib
from collections.abc import Callable, Mapping

import jax
from absl import flags

from uso_jax.common.errors import InputError
from uso_jax.hardware import peers

_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# Only processes started by srun have all of these; the batch script itself does not.
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
JOIN_SECONDS = 300  # to wait for a late process
_TPU_FILES = ("/dev/accel0", "/dev/vfio/0")


def define_flags() -> Callable[[], None]:
    """Define the flags of a multi-host run; return a function that joins the other processes."""
    address = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0 in a multi-host run.")
    count = flags.DEFINE_integer("num_processes", None, "Number of processes, with --coordinator.")
    index = flags.DEFINE_integer("process_id", None, "Index of this process, from 0, with --coordinator.")
    seconds = flags.DEFINE_integer(
        "join_seconds", JOIN_SECONDS, "Seconds to wait for the other processes of a multi-host run.", lower_bound=1
    )
    return lambda: join_processes(address.value, count.value, index.value, seconds.value)


def join_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    seconds: int = JOIN_SECONDS,
) -> None:
    """Join the other processes of a multi-host run; on a single host, do nothing.

    Args:
      coordinator: HOST:PORT of process 0; None reads JAX_COORDINATOR_ADDRESS.
      num_processes: None reads JAX_NUM_PROCESSES.
      process_id: from 0; None reads JAX_PROCESS_ID.
      seconds: to wait for the others; the program then ends with exit code 75.

    Raises:
      InputError: only some of the three are set, `process_id` is out of range, or the others do not answer.
    """
    asked = any(value is not None for value in (coordinator, num_processes, process_id))
    coordinator = coordinator or os.environ.get(_ADDRESS)
    num_processes, process_id = _number(num_processes, _COUNT), _number(process_id, _INDEX)
    if None not in (coordinator, num_processes, process_id):
        if not 0 <= process_id < num_processes:
            raise InputError(
                f"--process_id {process_id} must be between 0 and --num_processes - 1 = {num_processes - 1}"
            )
        _join(f"the coordinator {coordinator}", seconds, coordinator, num_processes, process_id)
    elif asked:
        raise InputError(
            "a multi-host run needs --coordinator, --num_processes and --process_id together (or"
            f" {_ADDRESS}, {_COUNT} and {_INDEX})"
        )
    elif name := detect(os.environ, _has_tpu()):
        _join(name, seconds)


def detect(environment: Mapping[str, str], has_tpu: bool) -> str:
    """Return the name of the cluster whose environment JAX can use to find the other processes, or "" if none.

    On a TPU machine without such variables, JAX queries the metadata server; the machine may turn out to be alone.
    """
    several = lambda name: environment.get(name, "1") not in ("", "0", "1")
    if all(environment.get(name) for name in _SLURM) and several("SLURM_NTASKS"):
        return "Slurm"
    if "OMPI_MCA_orte_hnp_uri" in environment and several("OMPI_COMM_WORLD_SIZE"):
        return "Open MPI"
    if not has_tpu:
        return ""
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in hosts or environment.get("MEGASCALE_COORDINATOR_ADDRESS"):
        return "the TPU slice's environment"
    alone = hosts or environment.get("TPU_SKIP_MDS_QUERY") or environment.get("TPU_PROCESS_BOUNDS")
    return "" if alone else "the TPU's metadata server"


def _has_tpu() -> bool:
    wanted = os.environ.get("JAX_PLATFORMS") or "tpu"
    installed = importlib.util.find_spec("libtpu") is not None
    return "tpu" in wanted and installed and any(pathlib.Path(path).exists() for path in _TPU_FILES)


def _join(name: str, seconds: int, *arguments: str | int) -> None:
    if "cpu" in (os.environ.get("JAX_PLATFORMS") or ""):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        with peers.joining(name, seconds):
            # If a process dies silently, `peers` says so; JAX's heartbeat aborts the others without a word.
            jax.distributed.initialize(
                *arguments,
                initialization_timeout=seconds,
                heartbeat_timeout_seconds=120,
                shutdown_timeout_seconds=60,
            )
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        reason = str(error).splitlines()[0][:300]
        raise InputError(f"cannot join the other processes by {name}: {reason}; see docs/clusters.md") from error
    peers.watch()


def _number(given: int | None, name: str) -> int | None:
    text = os.environ.get(name)
    if given is not None or not text:
        return given
    if not text.isdecimal():
        raise InputError(f"{name} must be a number, not {text!r}")
    return int(text)
