# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Run the steps of a curation by name. Each is resumable and can be shared by several processes.

captions -> stylize, destylize -> score -> judge    then report and export, which apply thresholds
                               -> truth             for sources with ground truth, see uso_jax.curation.truth
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uso_jax.common import locks
from uso_jax.common.errors import InputError
from uso_jax.curation import captions
from uso_jax.curation.config import CurationConfig
from uso_jax.curation.experts import Expert
from uso_jax.curation.part_judge import PartsJudge
from uso_jax.curation.scores import Scorer
from uso_jax.curation.store import STEPS, Folder, Made, Row
from uso_jax.curation.truth import Truth
from uso_jax.data.sources import Mixture, open_source
from uso_jax.vlm.client import Vlm

_VLM = "--config.curation.vlm"


def run_step(
    name: str,
    config: CurationConfig,
    spec: Mapping[str, Any],
    path: Path | str,
    *,
    process: tuple[int, int] = (0, 1),
    retry: bool = False,
) -> Folder:
    """Run one step. Complete shards are skipped, so an interrupted step continues.

    Args:
      name: one of STEPS.
      config: settings of the curation.
      spec: description of the source, see `uso_jax.data.sources.open_source`; used by the step captions only.
      path: directory of the curation.
      process: (index, count); each process handles its own shards.
      retry: redo shards with candidates for which this step failed.

    Raises:
      InputError: the step or the process is unknown, the step was run with other settings, or a step it needs is not
        finished.
    """
    if not 0 <= process[0] < process[1]:
        raise InputError(f"process {process[0]}/{process[1]} must be from 0/N to N-1/N.")
    with locks.hold(path, share=process):
        step = open_step(name, config, spec, Path(path), number=process[0], retry=retry)
        step.run(process)
        return step.folder


@dataclass(frozen=True)
class Step:
    """A step of a curation that is ready to run.

    Attributes:
      name: one of STEPS.
      folder: of the curation.
      settings: everything that determines the step's results.
      make: computes a shard.
      again: rows whose shards are computed again.
    """

    name: str
    folder: Folder
    settings: Mapping[str, Any]
    make: Callable[[int], Made]
    again: Callable[[Row], bool]

    def begin(self) -> None:
        """Store the settings, without computing anything; raise InputError if the step was run with others."""
        self.folder.run(self.name, self.settings, self.make, process=(self.folder.shards, self.folder.shards + 1))

    def run(self, process: tuple[int, int]) -> None:
        """Compute the shards of a process that are missing."""
        self.folder.run(self.name, self.settings, self.make, process=process, again=self.again)


def open_step(
    name: str, config: CurationConfig, spec: Mapping[str, Any], path: Path, *, number: int = 0, retry: bool = False
) -> Step:
    """Return a step that is ready to run; the arguments are those of `run_step`.

    Args:
      number: of the process, which names the file of its answers of a vision-language model.

    Raises:
      InputError: the step is unknown, or `path` holds another curation or none.
    """
    again = lambda row: retry and "failed" in row
    if name == "captions":
        source = _open(spec)
        total = min(len(source), config.limit or len(source))
        facts = dict(source=dict(spec), examples=total, layouts=config.layouts, shard_size=config.shard_size)
        folder = Folder.begin(path, facts)
        asks = config.captions == "vlm"
        vlm = Vlm.configured(config.vlm, path / "captions", number, _VLM) if asks else None
        settings = {"by": config.captions}
        settings |= {"question": config.caption_question, "model": config.vlm.model} if asks else {}
        make = lambda shard: captions.caption_shard(folder, source, config, vlm, shard)
        return Step(name, folder, settings, make, again)
    folder = Folder(path)
    if name in ("stylize", "destylize"):
        worker = Expert(name, config)
    elif name == "score":
        worker = Scorer(config)
    elif name == "judge":
        worker = PartsJudge(config, Vlm.configured(config.vlm, path / "judge", number, _VLM))
        again = worker.again(folder, retry)
    elif name == "truth":
        worker = Truth(_open(folder.manifest["source"]))
    else:
        raise InputError(f"unknown step {name!r}; use one of {', '.join(STEPS)}.")
    return Step(name, folder, worker.settings, lambda shard: worker.make_shard(folder, shard), again)


def _open(spec: Mapping[str, Any]):
    source = open_source(spec)
    if isinstance(source, Mixture) or hasattr(source, "example"):
        raise InputError("a curation reads one source of images; select it with --config.data.source.")
    return source
