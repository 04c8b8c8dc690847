# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What is chosen on the training page, as the arguments of `uso-train --config finetune`."""

import functools
import pathlib
import re
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uso_jax.app.training_folder import RUNS, TrainingFolder
from uso_jax.common import config_files, config_flag
from uso_jax.common.errors import InputError

CONFIG = "finetune"
MAX_CAPTION = 1000  # characters
_NAME = re.compile(r"\w[\w .-]{0,63}")


@functools.cache
def recipes() -> Mapping[str, str]:
    """Return what each recipe is, by name."""
    return runpy.run_path(config_files.find(CONFIG))["VARIANTS"]


@functools.cache
def _stage(recipe: str) -> str:
    """Return the name of the stage of a recipe."""
    (name,) = config_flag.load_config(f"{CONFIG}:{recipe}").run
    return name


@dataclass(frozen=True)
class TrainingSettings:
    """The controls of the page; "" and None leave a value to the recipe."""

    data: str = ""
    recipe: str = ""
    name: str = ""  # of the run; "": that of the data
    weights: str = ""
    steps: int | None = None
    learning_rate: float | None = None
    every: int | None = None  # steps between sample grids, and between held-out losses
    caption: str = ""  # of images without a sentence

    def arguments(self, folder: TrainingFolder) -> list[str]:
        """Return the arguments of uso-train, with paths relative to the folder.

        Raises:
          InputError: something is not in the folder, or a value cannot be.
        """
        if self.recipe not in recipes():
            raise InputError(f"recipe {self.recipe!r} is unknown; choose one of {', '.join(recipes())}")
        data = folder.name(folder.find(self.data, "data"))
        found = ["--config", f"{CONFIG}:{self.recipe}", "--data", data, "--workdir", self._workdir(data)]
        if self.weights:
            weights = folder.name(folder.find(self.weights, "weights directory"))
            found.append(f"--config.model.weights={weights}")
        for name, value in (("steps", self.steps), ("samples every", self.every)):
            if value is not None and not (isinstance(value, int) and 1 <= value <= 10**7):
                raise InputError(f"{name} is {value!r}; choose a whole number from 1 to ten million")
        if self.steps is not None:
            found += ["--steps", str(self.steps)]
        if self.learning_rate is not None:
            if not (isinstance(self.learning_rate, int | float) and 0 < self.learning_rate < 1):
                raise InputError(f"learning rate {self.learning_rate!r} must lie between 0 and 1")
            found.append(f"--config.stages.{_stage(self.recipe)}.learning_rate={float(self.learning_rate)!r}")
        if self.every is not None:
            found += [f"--config.heldout.{name}={self.every}" for name in ("grid_every", "every")]
        if self.caption.strip():
            if len(self.caption) > MAX_CAPTION or not self.caption.isprintable():
                raise InputError(f"the caption must be one line of at most {MAX_CAPTION} characters")
            found.append(f"--config.data.folder.caption={self.caption.strip()}")
        return found

    def _workdir(self, data: str) -> str:
        name = (self.name or "").strip() or pathlib.PurePath(data).stem or "own"
        if not _NAME.fullmatch(name):
            raise InputError(
                f"name {name!r} of the run: letters, digits, spaces, -, _ and . are allowed; choose another"
            )
        return f"{RUNS}/{name}"


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise InputError for a command that the page does not continue: configuration files are programs.

    Args:
      arguments: of uso-train, from a run's run.json.
    """
    rest, given = list(arguments), {}
    while rest:
        flag, has_value, value = rest.pop(0).partition("=")
        if not has_value:
            value = rest.pop(0) if rest else ""
        given[flag.lstrip("-")] = value
    recipe = given.pop("config", "")
    known = recipe == CONFIG or recipe in {f"{CONFIG}:{name}" for name in recipes()}
    if not known or any(name not in ("data", "steps", "workdir") and not name.startswith("config.") for name in given):
        raise InputError(f"the page continues runs of --config {CONFIG} only; continue this one with its own command")
