# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Programs that show a run's curves and sample grids while it trains, by name.

    --config.loggers=tensorboard,wandb

A logger is a class with three methods. It may also write images, and it must not fail a run: a service that cannot be
reached is the service's own concern, and metrics.jsonl has every number anyway. Steps are global, from 1.

wandb and trackio take their accounts and modes from their own settings (`wandb login`, WANDB_MODE=offline). Nothing
of the configuration leaves the machine but its values; keys are not part of it.
"""

import importlib.util
import pathlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from uso_jax.common import atomic_files, compat
from uso_jax.common.errors import InputError


@dataclass(frozen=True)
class Identity:
    """What a run is called by loggers."""

    workdir: pathlib.Path
    project: str
    config: Mapping[str, Any]  # values that decide the run, as JSON
    resume_step: int  # later steps of an earlier attempt are void

    @property
    def name(self) -> str:
        """Name of the run: the last part of its directory."""
        return self.workdir.absolute().name


class Logger(Protocol):
    """What a logger does."""

    def scalars(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Add numbers of one step, named group/name."""

    def image(self, step: int, name: str, path: pathlib.Path) -> None:
        """Add an image file."""

    def close(self) -> None:
        """Write what is buffered."""


class TensorBoard:
    """Event files in WORKDIR/tensorboard."""

    def __init__(self, identity: Identity):
        folder = str(identity.workdir / "tensorboard")
        self._writer = compat.summary_writer()(folder, purge_step=identity.resume_step + 1, flush_secs=10)

    def scalars(self, step: int, group: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def image(self, step: int, name: str, path: pathlib.Path) -> None:
        """Leave images to WORKDIR/samples, which TensorBoard's user has at hand."""

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of wandb, the same one for all attempts; its id is kept in the run's directory."""

    def __init__(self, identity: Identity):
        import wandb

        path = identity.workdir / "wandb_id"
        if not path.exists():
            atomic_files.write_file(path, uuid.uuid4().hex)
        self._image = wandb.Image
        self._run = wandb.init(
            project=identity.project,
            name=identity.name,
            id=path.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(identity.workdir),
            config=dict(identity.config),
            save_code=False,
        )
        # wandb's own steps only grow, also where a run goes back to a checkpoint.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, group: str, values: Mapping[str, float]) -> None:
        self._run.log({f"{group}/{name}": value for name, value in values.items()} | {"step": step})

    def image(self, step: int, name: str, path: pathlib.Path) -> None:
        self._run.log({name: self._image(str(path)), "step": step})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of trackio, which keeps its data on this machine unless its own settings name a Space."""

    def __init__(self, identity: Identity):
        import trackio

        self._image = trackio.Image
        self._run = trackio.init(
            project=identity.project, name=identity.name, resume="allow", config=dict(identity.config), embed=False
        )

    def scalars(self, step: int, group: str, values: Mapping[str, float]) -> None:
        self._run.log({f"{group}/{name}": value for name, value in values.items()}, step=step)

    def image(self, step: int, name: str, path: pathlib.Path) -> None:
        self._run.log({name: self._image(str(path))}, step=step)

    def close(self) -> None:
        self._run.finish()


LOGGERS = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}


def check(names: tuple[str, ...]) -> None:
    """Raise InputError for a logger that is unknown or not installed."""
    for name in names:
        if name not in LOGGERS:
            raise InputError(f"config.loggers: {name!r} is unknown; known are {', '.join(LOGGERS)}")
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise InputError(f"config.loggers: {name} is not installed; install it with: pip install {name}")
