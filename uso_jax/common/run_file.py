# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""WORKDIR/run.json: the command that trains there and its steps, for programs that watch or continue the run."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TypedDict

from uso_jax.common import atomic_files, untrusted

NAME = "run.json"


class RunFile(TypedDict):
    """What the file holds."""

    arguments: list[str]  # of uso-train
    folder: str  # where the command was run
    stages: dict[str, int]  # steps of each stage, in order


def write(workdir: pathlib.Path, arguments: Sequence[str], stages: Mapping[str, int]) -> None:
    """Write the file atomically.

    Args:
      workdir: the directory of the run.
      arguments: of uso-train.
      stages: steps of each stage, in order.

    Raises:
      OSError: it cannot be written.
    """
    found = RunFile(arguments=list(arguments), folder=os.getcwd(), stages=dict(stages))
    atomic_files.write_file(workdir / NAME, json.dumps(untrusted.recorded(found), indent=2) + "\n")


def read(workdir: pathlib.Path) -> RunFile | None:
    """Return what the file holds, or None if there is none.

    Raises:
      InputError: it is damaged.
    """
    path = workdir / NAME
    return untrusted.json(path, RunFile, remedy="start the run again with its command") if path.is_file() else None
