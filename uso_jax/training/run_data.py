# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The training data of a run, stage by stage; its rows must be those of earlier attempts and of all processes."""

import pathlib

from uso_jax.common.differences import first_differences
from uso_jax.common.errors import InputError
from uso_jax.data.fingerprint import fingerprint
from uso_jax.data.sources import Mixture, open_source
from uso_jax.data.triplet import TripletSource
from uso_jax.hardware import peers
from uso_jax.training.config import TrainConfig
from uso_jax.training.record import RunRecord


class RunData:
    """The training sources of a run's stages."""

    def __init__(self, config: TrainConfig, workdir: pathlib.Path):
        self._config, self._workdir = config, workdir
        self._open: tuple[int, TripletSource | Mixture] | None = None

    def source(self, index: int, record: RunRecord) -> TripletSource | Mixture:
        """Return the source of a stage; the record keeps the fingerprint of its rows.

        Raises:
          InputError: the rows are not those that the record knows, or other processes read other rows.
        """
        if self._open is not None and self._open[0] == index:
            return self._open[1]
        stage = self._config.run_stages[index]
        source = open_source(self._config.data.train, stage.data)
        found = fingerprint(source)
        rows = record.rows or {}
        alike = [stage.name, *(one.name for one in self._config.run_stages if one.data == stage.data)]
        known = next((rows[name] for name in alike if name in rows), None)
        if known is not None and (differ := first_differences(known, found)):
            raise InputError(
                f"the training data of stage {stage.name!r} has changed since {self._workdir} was begun ({differ}):"
                f" restore it, or train on it from the weights of this run: --init_from {self._workdir} --workdir NEW"
            )
        peers.agree(lambda: {f"data of stage {stage.name}": found})
        record.rows = {**rows, stage.name: found}
        self._open = index, source
        return source
