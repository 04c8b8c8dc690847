# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints with Orbax: trained parameters, optimizer, average, data position and the run's record.

Frozen parameters are not saved; they come again from the weights directory or the seed. A checkpoint is written beside
its final name and renamed when complete, so a failed save leaves the previous one as it was.
"""

import contextlib
import logging
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from uso_jax.errors import InputError


class Checkpoints:
    """The checkpoints of one run, by global step."""

    def __init__(self, directory: str | pathlib.Path, keep: int = 2):
        self.directory = pathlib.Path(directory).absolute()
        # Orbax reports every save and every missing optional file; the progress bar is the user's log.
        logging.getLogger("absl").setLevel(logging.ERROR)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=False
        )
        try:
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise InputError(f"cannot write checkpoints to {self.directory}: {error.strerror or error}") from error

    def latest(self) -> int | None:
        """Give the newest complete checkpoint's step."""
        return self._manager.latest_step()

    def save(self, step: int, arrays: Any, record: dict) -> None:
        """Write a checkpoint of a tree of arrays and a JSON record.

        Raises:
          InputError: it could not be written; earlier checkpoints are untouched.
        """
        items = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record))
        try:
            self._manager.save(step, args=items, force=True)
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            # TensorStore reports a full disk as ValueError; whatever the reason, the remedy is the user's.
            with contextlib.suppress(Exception):
                self._manager.close()
            good = ocp.utils.checkpoint_steps(self.directory)
            last = f"the last good checkpoint is step {max(good)}" if good else "there is no earlier checkpoint"
            reason = str(error).splitlines()[0][:300]
            raise InputError(
                f"could not save the checkpoint of step {step} to {self.directory}: {reason}; {last}."
                " Free some space or choose another --workdir, and run the same command to continue"
            ) from error

    def record(self, step: int) -> dict:
        """Read only a checkpoint's JSON record."""
        return self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]

    def restore(self, step: int, like: Any) -> Any:
        """Read a checkpoint's arrays into the shapes, dtypes and shardings of `like`."""
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            items = ocp.args.Composite(arrays=ocp.args.StandardRestore(target))
            return self._manager.restore(step, args=items)["arrays"]
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0][:300]
            raise InputError(f"checkpoint {self.directory}/{step} cannot be read: {reason}") from error

    def close(self) -> None:
        """Release Orbax's threads."""
        self._manager.close()
