# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""All uses of interfaces that other packages do not promise to keep. Each has a test.

A new release of a dependency is first tried with tests/common/test_compat.py.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import filelock
    import jax
    import orbax.checkpoint as ocp


def used_arguments(lowered: "jax.stages.Lowered") -> list[bool]:
    """Return for each argument of a lowered program, in order of its leaves, whether the program reads it.

    JAX drops the others before it compiles; its public interface does not say which they are.
    """
    import jax

    kept = lowered._lowering.compile_args["kept_var_idx"]
    return [number in kept for number in range(len(jax.tree.leaves(lowered.args_info)))]


def summary_writer() -> Any:
    """Return tensorboardX's `SummaryWriter`, imported without torch.

    tensorboardX imports torch wherever it is installed, for seconds and hundreds of megabytes, and works without it.
    """
    with _absent("torch"):
        from tensorboardX import SummaryWriter

    return SummaryWriter


def coordinator() -> tuple[Any, str, int, int]:
    """Return the client of JAX's coordinator, None where it has joined no others, its HOST:PORT, and index and count.

    Unlike `jax.process_index`, this does not look for devices.
    """
    from jax._src import distributed

    state = distributed.global_state
    return state.client, state.coordinator_address or "", state.process_id, state.num_processes


def start_resource_tracker() -> None:
    """Start Python's process that removes the shared memory of processes that were killed; it does so without a word.

    It warns otherwise, after the sentence that says why the program ends. Where it runs already, nothing changes.
    """
    from multiprocessing import resource_tracker

    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (before, "ignore:resource_tracker:UserWarning")))
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def watch_saves(manager: "ocp.CheckpointManager", failed: Callable[[BaseException], object]) -> None:
    """Call `failed` with the error of a save in the background.

    Orbax raises it only after all processes have met, for which the others would wait minutes.
    """
    background = manager._checkpointer._async_manager
    check = background.check_for_errors

    def watched() -> None:
        try:
            check()
        except BaseException as error:
            failed(error)
            raise

    background.check_for_errors = watched


def silence_closed_loops() -> None:
    """Leave out the tracebacks that TensorStore prints for every other file of a save that has failed.

    Its threads report to an event loop that Orbax has closed by then; the failure itself is raised where it belongs.
    """
    hook = sys.unraisablehook

    def quiet(unraisable: "sys.UnraisableHookArgs") -> None:
        error = unraisable.exc_value
        if not isinstance(error, RuntimeError) or str(error) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = quiet


def lock_host() -> str:
    """Return the name of this host as filelock writes it into lock files; it tells containers of one host apart."""
    from filelock._identity import host_name

    return host_name()


def lock_is_stale(owner: "filelock.OwnerRecord") -> bool:
    """Return whether a lock file names a process of this host that has ended, also if another one has its id now."""
    from filelock._identity import owner_is_stale

    return owner_is_stale(owner.pid, owner.hostname, owner.start)


@contextlib.contextmanager
def _absent(name: str) -> Iterator[None]:
    """Let imports of a package fail as if it were not installed, unless it has been imported already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
