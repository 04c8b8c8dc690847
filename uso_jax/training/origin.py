# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The run whose trained parameters a new run starts from, with other settings: `--init_from WORKDIR`.

A parameter is taken from the moving average of that run's last stage where there is one, as images are generated with
it, and otherwise as it was trained. Parameters that the new run does not train are taken over, too, and are part of its
checkpoints, so that it never needs the other run again. Optimizer, average, step and data start anew.
"""

import pathlib
from collections.abc import Mapping, Set
from typing import Any

import jax
import orbax.checkpoint as ocp

from uso_jax.common.errors import InputError
from uso_jax.params import Params
from uso_jax.training.checkpoints import damage


class Origin:
    """The newest checkpoint of another run.

    Args:
      workdir: of the other run.
      shapes: all parameters of the new run.
      quantised: paths of those that the new run keeps quantised.

    Raises:
      InputError: there is no checkpoint, it cannot be read, or its parameters have other shapes.
    """

    def __init__(self, workdir: str | pathlib.Path, shapes: Mapping[str, Any], quantised: Set[str] = frozenset()):
        self.workdir = pathlib.Path(workdir).absolute()
        steps = [path for path in (self.workdir / "checkpoints").glob("*") if path.name.isdecimal()]
        if not steps:
            raise InputError(f"--init_from {workdir} has no checkpoint; give the --workdir of a training")
        self._folder = max(steps, key=lambda path: int(path.name)) / "arrays"
        with damage(f"--init_from {workdir}: the checkpoint {self._folder.parent} cannot be read"):
            with ocp.PyTreeCheckpointer() as reader:
                tree = reader.metadata(self._folder).item_metadata.tree
            stored = {path: tuple(found.shape) for path, found in tree["params"].items()}
            self._average = set(tree.get("ema") or ())
        if other := [path for path, shape in stored.items() if path in shapes and shapes[path].shape != shape]:
            raise InputError(
                f"--init_from {workdir} trained {other[0]} with shape {list(stored[other[0]])}, and this run has"
                f" {list(shapes[other[0]].shape)}: use the same --config.model settings"
            )
        if stored.keys() & quantised:
            raise InputError(
                f"--init_from {workdir} trained {min(stored.keys() & quantised)}, which model.quantization would"
                " quantise: set it to ''"
            )
        self.paths = sorted(stored.keys() & shapes.keys())
        if not self.paths:
            raise InputError(f"--init_from {workdir} trained no parameter that this run has")

    def facts(self) -> dict[str, Any]:
        """Return what the new run's record keeps."""
        return {"workdir": str(self.workdir), "step": int(self._folder.parent.name), "parameters": self.paths}

    def read(self, structs: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
        """Read the parameters with the dtype and the sharding of their structs.

        Raises:
          InputError: the checkpoint cannot be read.
        """
        wanted: dict[str, dict] = {"params": {}, "ema": {}}
        for path in self.paths:
            struct = structs[path]
            place = dict(sharding=struct.sharding, global_shape=struct.shape, dtype=struct.dtype)
            wanted["ema" if path in self._average else "params"][path] = ocp.ArrayRestoreArgs(**place)
        wanted = {name: args for name, args in wanted.items() if args}
        item = {name: dict.fromkeys(args, 0) for name, args in wanted.items()}
        with (
            damage(f"--init_from: the checkpoint {self._folder.parent} cannot be read"),
            ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader,
        ):
            restore = ocp.args.PyTreeRestore(item=item, restore_args=wanted, partial_restore=True)
            found = reader.restore(self._folder, args=restore)
        return {path: value for part in found.values() for path, value in part.items()}


def check_origin(known: Mapping[str, Any] | None, given: str | pathlib.Path | None, workdir: pathlib.Path) -> None:
    """Raise InputError if a run that continues is asked to start from another run than it did."""
    if given is not None and str(pathlib.Path(given).absolute()) != (known or {}).get("workdir"):
        began = f"which began from {known['workdir']}" if known else "which began without --init_from"
        raise InputError(
            f"{workdir} holds a run {began}; choose another --workdir, or leave out --init_from to continue"
        )
