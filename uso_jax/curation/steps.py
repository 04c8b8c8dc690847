# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Run the steps of a curation by name. Each is resumable and can be shared by several processes.

captions -> stylize, destylize -> score -> judge    then report and export, which apply thresholds
                               -> truth             for sources with ground truth, see uso_jax.curation.truth
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uso_jax.common import locks
from uso_jax.common.errors import InputError
from uso_jax.curation import captions
from uso_jax.curation.config import CurationConfig
from uso_jax.curation.experts import Expert
from uso_jax.curation.part_judge import PartsJudge
from uso_jax.curation.scores import Scorer
from uso_jax.curation.store import STEPS, Folder
from uso_jax.curation.truth import Truth
from uso_jax.data.sources import Mixture, open_source


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
        return _run_step(name, config, spec, Path(path), process, retry)


def _run_step(
    name: str, config: CurationConfig, spec: Mapping[str, Any], path: Path, process: tuple[int, int], retry: bool
) -> Folder:
    again = lambda row: retry and "failed" in row
    if name == "captions":
        source = _open(spec)
        total = min(len(source), config.limit or len(source))
        facts = dict(source=dict(spec), examples=total, layouts=config.layouts, shard_size=config.shard_size)
        folder = Folder.begin(path, facts)
        asks = config.captions == "vlm"
        vlm = config.vlm.open(path / "captions", process[0]) if asks else None
        settings = {"by": config.captions}
        settings |= {"question": config.caption_question, "model": config.vlm.model} if asks else {}
        make = lambda shard: captions.caption_shard(folder, source, config, vlm, shard)
        folder.run(name, settings, make, process=process, again=again)
        return folder
    folder = Folder(path)
    if name in ("stylize", "destylize"):
        worker = Expert(name, config)
    elif name == "score":
        worker = Scorer(config)
    elif name == "judge":
        worker = PartsJudge(config, config.vlm.open(path / "judge", process[0]))
        again = worker.again(folder, retry)
    elif name == "truth":
        worker = Truth(_open(folder.manifest["source"]))
    else:
        raise InputError(f"unknown step {name!r}; use one of {', '.join(STEPS)}.")
    folder.run(name, worker.settings, lambda shard: worker.make_shard(folder, shard), process=process, again=again)
    return folder


def _open(spec: Mapping[str, Any]):
    source = open_source(spec)
    if isinstance(source, Mixture) or hasattr(source, "example"):
        raise InputError("a curation reads one source of images; select it with --config.data.source.")
    return source
