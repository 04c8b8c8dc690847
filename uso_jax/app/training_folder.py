# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The folder in which the training page works: data, weights and runs inside it, and nothing outside."""

import itertools
import os
import pathlib
from collections.abc import Iterator

from uso_jax import weights
from uso_jax.common import folders, run_file
from uso_jax.common.errors import InputError
from uso_jax.weights import training_runs

RUNS = "runs"
_DEPTH, _MOST = 3, 2000  # levels and folders that are searched
_ARCHIVES = (".tar", ".zip", ".parquet")


class TrainingFolder:
    """A folder; everything in it is known by a name relative to it, with "/"."""

    def __init__(self, path: pathlib.Path):
        """Open the folder.

        Raises:
          InputError: it is no folder.
        """
        self.path = path.absolute()
        if not self.path.is_dir():
            raise InputError(f"--training_folder {path} is not a folder; name one that holds your images")
        self._real = self.path.resolve()

    def find(self, name: str, what: str) -> pathlib.Path:
        """Return the path of what exists in the folder, links followed.

        Raises:
          InputError: it does not exist or lies elsewhere; `what` begins the message.
        """
        path = self._inside(name, what)
        if not path.exists():
            raise InputError(f"{what} {name!r} does not exist in {self.path}; choose one from the list")
        return path

    def workdir(self, name: str) -> pathlib.Path:
        """Return the directory of a run, which need not exist.

        Raises:
          InputError: it lies elsewhere.
        """
        path = self._inside(name, "run")
        if path == self._real:
            raise InputError("a run needs a folder of its name; choose one from the list")
        return path

    def _inside(self, name: str, what: str) -> pathlib.Path:
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise InputError(f"choose a {what}")
        try:
            path = (self._real / name.strip()).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"{what} {name!r} is not a path; choose one from the list") from error
        if not path.is_relative_to(self._real):
            raise InputError(
                f"{what} {name!r} lies outside {self.path}; move it there, or start the app with --training_folder"
            )
        return path

    def name(self, path: pathlib.Path) -> str:
        """Return the name of a path inside the folder."""
        return path.resolve().relative_to(self._real).as_posix()

    # ------------------------------------------------------------------------------------------------ lists

    def data(self) -> list[str]:
        """Return the names of folders and archives that may be training data."""
        found = []
        for path, files in self._folders():
            if _is_weights(path):
                continue
            if any(map(folders.is_image, files)) or any(file.endswith(_ARCHIVES) for file in files):
                found.append(self.name(path))
            found += [self.name(path / file) for file in files if file.endswith(_ARCHIVES)]
        return sorted(found, key=lambda name: name == ".")  # the folder itself comes last

    def weights(self) -> list[str]:
        """Return the names of weights directories."""
        return [self.name(path) for path, _ in self._folders() if _is_weights(path)]

    def runs(self) -> list[str]:
        """Return the names of trainings in `RUNS`, newest first."""
        try:
            found = [path for path in (self._real / RUNS).iterdir() if is_run(path)]
        except OSError:
            return []
        return [self.name(path) for path in sorted(found, key=_modified, reverse=True)]

    def _folders(self) -> Iterator[tuple[pathlib.Path, list[str]]]:
        """Yield folders and the names of their files, without those of runs; nothing inside of weights directories."""
        for place, names, files in itertools.islice(os.walk(self._real), _MOST):
            path = pathlib.Path(place)
            if path == self._real / RUNS or is_run(path):
                names.clear()
                continue
            is_leaf = len(path.relative_to(self._real).parts) >= _DEPTH or _is_weights(path)
            names[:] = [] if is_leaf else sorted(name for name in names if not folders.is_clutter(name))
            yield path, sorted(files)


def _is_weights(path: pathlib.Path) -> bool:
    return bool(weights.components(path))


def is_run(path: pathlib.Path) -> bool:
    """Return whether a folder is the --workdir of a training."""
    return (
        (path / run_file.NAME).is_file()
        or (path / "metrics.jsonl").is_file()
        or ((path / "checkpoints").is_dir() and training_runs.is_training(path))
    )


def _modified(path: pathlib.Path) -> float:
    for name in ("metrics.jsonl", run_file.NAME):
        if (path / name).is_file():
            return (path / name).stat().st_mtime
    return path.stat().st_mtime
