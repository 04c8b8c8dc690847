# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints with Orbax: trained parameters, optimizer state, average, data position and the run's record.

Frozen parameters are not saved: a resumed run takes them from the weights directory or the seed again. A checkpoint is
written under a temporary name and renamed when it is complete, so a failed save leaves earlier checkpoints untouched.
Every process writes its shards in the background while training continues.
"""

import contextlib
import os
import pathlib
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from uso_jax.common import compat, untrusted
from uso_jax.common.errors import InputError


class Checkpoints:
    """The checkpoints of one run by global step: the last `keep`, and those at multiples of `keep_every` (0: none)."""

    def __init__(self, directory: str | pathlib.Path, keep: int = 2, keep_every: int = 0):
        self.directory = pathlib.Path(directory).absolute()
        # Orbax would delete unfinished saves at once, even those of a writer that lives: see `remove_old`.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None, cleanup_tmp_directories=False
        )
        self._saving: int | None = None
        self._keep, self._keep_every = keep, keep_every
        try:
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise InputError(f"cannot write checkpoints to {self.directory}: {error.strerror or error}") from error
        self._errors: list[BaseException] = []  # of a save in the background
        compat.watch_saves(self._manager, self._errors.append)

    def latest(self) -> int | None:
        """Return the step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, arrays: Any, record: dict) -> None:
        """Begin to write a checkpoint of a tree of arrays and a JSON record, both as they are now.

        Raises:
          InputError: this checkpoint or the one before could not be written; earlier ones are untouched.
        """
        self.wait()
        items = ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(untrusted.recorded(record))
        )
        with self._explained(step):
            self._manager.save(step, args=items, force=True)
            self._saving = step

    def check(self) -> None:
        """Raise the error of the save in progress, if it has failed; cheap enough for every step."""
        if self._saving is not None:
            with self._explained(self._saving):
                if self._errors:
                    raise self._errors[0]
                self._manager.check_for_errors()

    def wait(self) -> None:
        """Wait for the save in progress.

        Raises:
          InputError: it could not be written.
        """
        if self._saving is not None:
            with self._explained(self._saving):
                self._finish(self._manager.wait_until_finished)
            self._saving = None

    def newest(self, like: Callable[[dict], Any]) -> tuple[int, dict, Any] | None:
        """Return step, record and arrays of the newest checkpoint that can be read, or None if there is none at all.

        Newer checkpoints that cannot be read are moved to ../damaged, which stderr reports.

        Args:
          like: returns the arrays' shapes, dtypes and shardings for a record, or None to read no arrays; it raises
            Damaged where the record makes no sense.

        Raises:
          InputError: no checkpoint can be read.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            found, reason = None, "another process cannot read it"
            try:
                record = self.record(step)
                wanted = like(record)
                found = step, record, wanted and self.restore(step, wanted)
            except Damaged as error:
                reason = str(error)
            if _everywhere(found is not None):
                for other, why in damaged.items():
                    self._set_aside(other, why, step)
                return found
            damaged[step] = reason
        if damaged:
            step, reason = next(iter(damaged.items()))
            raise InputError(
                f"checkpoint {self.directory}/{step} cannot be read: {reason}, and there is no other one;"
                " copy it again, or move it away to begin anew"
            )
        return None

    def remove_old(self) -> None:
        """Delete what a killed run may have left: unfinished saves, and checkpoints that are not to be kept.

        The caller is the only writer of the directory.
        """
        if jax.process_index() == 0:
            for path in self.directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)
        _everywhere(True)
        steps = sorted(self._manager.all_steps())
        for step in steps[: -self._keep]:
            if not self._keep_every or step % self._keep_every:
                self._manager.delete(step)

    @staticmethod
    def newest_record(directory: pathlib.Path) -> dict | None:
        """Return the JSON record of the newest checkpoint in a directory, which is only read, or None without any."""
        steps = [int(path.name) for path in directory.glob("*") if path.name.isdecimal()]
        return untrusted.json(directory / str(max(steps)) / "record" / "metadata", dict, nan=True) if steps else None

    def record(self, step: int) -> dict:
        """Read only a checkpoint's JSON record."""
        with damage():
            return untrusted.json(self.directory / str(step) / "record" / "metadata", dict, nan=True)

    def restore(self, step: int, like: Any) -> Any:
        """Read a checkpoint's arrays into the shapes, dtypes and shardings of `like`, on any mesh."""
        items = ocp.args.Composite(arrays=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like)))
        with damage():
            return self._manager.restore(step, args=items)["arrays"]

    def close(self) -> None:
        """Finish the save in progress and release Orbax's threads; errors are ignored, `wait` raises them."""
        with contextlib.suppress(Exception):
            self._finish(self._manager.close)

    def _finish(self, function: Callable[[], None]) -> None:
        """Call a function that waits for a save, but not longer than until the save has failed in this process.

        Orbax would first wait for the other processes, which wait for this one.
        """
        if jax.process_count() == 1:
            function()
            return
        raised: list[BaseException] = []

        def call() -> None:
            try:
                function()
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=call, name="save", daemon=True)
        thread.start()
        while thread.is_alive() and not self._errors:
            thread.join(0.1)
        for error in (*self._errors, *raised):
            raise error

    def _set_aside(self, step: int, reason: str, instead: int) -> None:
        place = self.directory.parent / "damaged"
        place /= f"{step}" if not (place / f"{step}").exists() else f"{step}.{time.time_ns()}"
        if jax.process_index() == 0:
            place.parent.mkdir(parents=True, exist_ok=True)
            (self.directory / str(step)).rename(place)
            print(
                f"checkpoint {self.directory}/{step} cannot be read: {reason}; it is moved to {place}, and the run"
                f" goes on from step {instead}",
                file=sys.stderr,
                flush=True,
            )
        _everywhere(True)
        self._manager.reload()

    @contextlib.contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        """Turn an error while saving a step into an InputError."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            # TensorStore reports a full disk as ValueError.
            self._saving = None
            self.close()
            good = ocp.utils.checkpoint_steps(self.directory)
            last = f"the last good checkpoint is step {max(good)}" if good else "there is no earlier checkpoint"
            reason = _cause(str(error))
            raise InputError(
                f"could not save the checkpoint of step {step} to {self.directory}: {reason}; {last}."
                " Free some space or choose another --workdir, and run the same command to continue"
            ) from error


def _cause(message: str) -> str:
    """Return the system's own words for an error of TensorStore, whose messages begin with long paths."""
    found = re.search(r"os_error_code='(\d+)'", message)
    return os.strerror(int(found[1])) if found else message.splitlines()[0][:300]


class Damaged(InputError):
    """A checkpoint cannot be read."""


@contextlib.contextmanager
def damage(what: str = "") -> Iterator[None]:
    """Turn any error inside the block into Damaged; `what` begins the message."""
    try:
        yield
    except Damaged:
        raise
    except Exception as error:  # Orbax and TensorStore raise whatever the damaged bytes lead to, even bare Exceptions
        reason = (str(error) or type(error).__name__).splitlines()[0][:300]
        raise Damaged(f"{what}: {reason}" if what else reason) from error


def _everywhere(mine: bool) -> bool:
    """Return whether something holds in every process."""
    if jax.process_count() == 1:
        return mine
    return bool(np.all(multihost_utils.process_allgather(np.asarray(mine))))
