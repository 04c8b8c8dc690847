# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Run a step of a curation on Apache Beam (`pip install "uso_jax[beam]"`): every shard is a work item.

All workers see the curation's directory. A worker loads the step's networks once. Steps with networks hold a lock of
their host while they compute a shard, so that workers of one host take turns on its accelerator; start one worker a
host (--sdk_worker_parallelism=1), because each keeps its networks on the device.
"""

import pathlib
import random
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam
import filelock
from apache_beam.options.pipeline_options import PipelineOptions

from uso_jax.common import locks
from uso_jax.curation import steps
from uso_jax.curation.config import CurationConfig
from uso_jax.curation.store import Folder

_WITH_NETWORKS = ("stylize", "destylize", "score")
_LOCK = "uso_jax_accelerator.lock"


def run_step(
    name: str,
    config: CurationConfig,
    spec: Mapping[str, Any],
    path: pathlib.Path | str,
    *,
    options: Sequence[str] = (),
    retry: bool = False,
) -> Folder:
    """Run one step as `uso_jax.curation.steps.run_step` does, with the same shards, by the workers of a Beam runner.

    Args:
      name, config, spec, path, retry: as there.
      options: of the Beam pipeline, as on a command line.

    Raises:
      InputError: as there, where it can be found before the workers start; workers raise it too.
    """
    path = pathlib.Path(path)
    with locks.hold(path):
        step = steps.open_step(name, config, spec, path, retry=retry)
        step.begin()
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        shards = pipeline | beam.Create(range(step.folder.shards)) | beam.Reshuffle()
        _ = shards | name >> beam.ParDo(_Shards(name, config, dict(spec), str(path), retry))
    return step.folder


class _Shards(beam.DoFn):
    """Compute shards of a step."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def setup(self):
        name, config, spec, path, retry = self.arguments
        # Each worker stores answers of a vision-language model in another file.
        number = random.SystemRandom().getrandbits(32)
        self.step = steps.open_step(name, config, spec, pathlib.Path(path), number=number, retry=retry)

    def process(self, shard):
        name, folder = self.step.name, self.step.folder
        with locks.hold(folder.path, share=(shard, folder.shards)):
            if name not in _WITH_NETWORKS:
                self.step.run(process=(shard, folder.shards))
                return
            with filelock.FileLock(pathlib.Path(tempfile.gettempdir()) / _LOCK):
                self.step.run(process=(shard, folder.shards))
