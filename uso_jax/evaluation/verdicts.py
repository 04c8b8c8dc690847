# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The exact verdicts of every held-out image of a run, and differences of two sets of runs with intervals.

A run judges the same images before training, after it and told in words, and so do runs of other seeds and variants.
So differences are taken image by image, over the mean of the seeds, and resampled over images: this interval says how
far the choice of images matters, where the standard deviation over seeds says it of the training.
"""

import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from uso_jax.common import atomic_files
from uso_jax.common.errors import InputError

FILE = "verdicts.npz"
Verdicts = Mapping[str, Float[np.ndarray, " n"]]
"""Figure -> a value per image."""


def save(workdir: pathlib.Path, found: Mapping[str, Mapping[str, Verdicts]]) -> None:
    """Write verdicts by row and table, beside those of other rows that the run has."""
    try:
        kept = _arrays(workdir)
    except (OSError, ValueError, zipfile.BadZipFile):
        kept = {}  # no others, or damaged
    kept |= {
        f"{table}/{row}/{figure}": values
        for row, tables in found.items()
        for table, verdicts in tables.items()
        for figure, values in verdicts.items()
    }
    with atomic_files.beside(workdir / FILE) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **kept)


def load(workdir: pathlib.Path, table: str) -> dict[str, dict[str, np.ndarray]]:
    """Return the verdicts of a table by row and figure.

    Raises:
      InputError: the run has no verdicts, or none of this table.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    try:
        for key, values in _arrays(workdir).items():
            owner, row, figure = key.split("/")
            if owner == table:
                found.setdefault(row, {})[figure] = values
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{workdir / FILE} cannot be read ({error}): run that training again") from error
    if not found:
        raise InputError(f"{workdir / FILE} has no verdicts of table {table!r}")
    return found


def _arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(workdir / FILE, allow_pickle=False) as kept:
        return {key: kept[key] for key in kept}


def gains(after: Sequence[Verdicts], before: Sequence[Verdicts]) -> dict[str, dict[str, Any]]:
    """Return, by figure, the mean of after - before over images, with its 95 % interval (`low`, `high`) and `p`.

    Args:
      after: of every seed, on the same images.
      before: likewise; the number of seeds may differ.

    Raises:
      InputError: the runs were not judged on equally many images.
    """
    from uso_jax.evaluation.significance import difference  # SciPy's statistics take seconds to import

    if len({len(values) for verdicts in (*after, *before) for values in verdicts.values()}) > 1:
        raise InputError("the runs were judged on different images: evaluation.num_triplets differs")
    mean = lambda runs, figure: np.mean([verdicts[figure] for verdicts in runs], axis=0)
    shared = [figure for figure in after[0] if all(figure in verdicts for verdicts in (*after, *before))]
    return {figure: difference(mean(after, figure), mean(before, figure)) for figure in shared}
