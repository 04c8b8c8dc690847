# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Prepare data: uso-curate COMMAND --to PATH [--config.data.source=NAME ...].

    view        an HTML page with a data card and a sample of the triplets
    convert     the triplets as a TFDS data set, with a page and a card
    precompute  the outputs of the encoders, to train without encoders

Make triplets of stylised images, with --config configs/curation.py
(docs/curation.md):

    captions    a caption of every image
    stylize     style references, by an expert
    destylize   content references, by an expert
    score       similarity of both to the target, by CSD and DINO
    judge       the subject part by part, by a vision-language model
    run         all of these in order; without judge if keep.judge is negative
    truth       for drawn sources: which references are right
    report      a page about what is kept and why
    export      the kept triplets, as convert writes them

The configuration selects the source and, for precompute, the encoders and
sizes. Several processes (--process=0/4 to 3/4) share the work.
"""

import pathlib
import re
import shlex

from absl import app, flags

from uso_jax.commands import verify_flag
from uso_jax.common import atomic_files, config_flag, extras
from uso_jax.common.errors import InputError, exit_cleanly
from uso_jax.curation.store import STEPS
from uso_jax.training.config import TrainConfig

_CONFIG = config_flag.define(__name__)
_TO = flags.DEFINE_string("to", None, "Folder, or for view the .html file, to write.")
_SPLIT = flags.DEFINE_multi_enum(
    "split",
    ["train"],
    ["train", "heldout", "prior"],
    "Split of the source; convert takes several, prior is for precompute.",
)
_NAME = flags.DEFINE_string("name", None, "convert, export: name of the data set; default the source's.")
_LIMIT = flags.DEFINE_integer("limit", 0, "convert: triplets to take of each split; 0 takes all.")
_SAMPLE = flags.DEFINE_integer("sample", 48, "view, convert, report: triplets on the page.")
_BEAM = flags.DEFINE_string(
    "beam",
    None,
    "convert and steps of a curation: work is shared by Apache Beam, with these pipeline options; '' for the default.",
)
_STAGE = flags.DEFINE_string("stage", None, "precompute: the stage whose sizes are used; default the last of the run.")
_PROCESS = flags.DEFINE_string("process", "0/1", "precompute and steps of a curation: NUMBER/COUNT of this process.")
_RETRY = flags.DEFINE_bool("retry", False, "Steps of a curation: repeat what failed.")
_SHARD_SIZE = flags.DEFINE_integer("shard_size", 1024, "precompute: examples per file.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "", ["", "float32", "bfloat16"], "precompute: dtype of style and text; default as encoded."
)
_REWARDS = flags.DEFINE_bool("rewards", False, "precompute: also keep what the run's rewards read of references.")


def main() -> None:
    """Parse the command line and run the command. User errors end with exit code 2."""
    app.run(_run, flags_parser=config_flag.parse)


@exit_cleanly
def _run(argv: list[str]) -> None:
    """Run one of the commands."""
    commands = {"view": _view, "convert": _convert, "precompute": _precompute}
    commands |= dict.fromkeys((*STEPS, "run"), _curate) | {"report": _report, "export": _export}
    if len(argv) != 2 or argv[1] not in commands or not _TO.value:
        names = " | ".join(commands)
        raise InputError(f"usage: uso-curate {names} --to PATH [--config.data.source=NAME ...]")
    if argv[1] not in ("view", "convert", "precompute"):
        extras.require("curation")
    config = _CONFIG.value
    config.data.check()
    to = pathlib.Path(_TO.value)
    with atomic_files.explained(f"--to {to}", "choose another place"):
        atomic_files.probe(to if argv[1] == "view" else to / "probe")
    commands[argv[1]](config, *([argv[1]] if commands[argv[1]] is _curate else []))


def _view(config: TrainConfig) -> None:
    from uso_jax.data import card
    from uso_jax.data.sources import open_source

    split = _SPLIT.value[-1]
    title = f"{_CONFIG.value.data.source}, {split}"
    card.write_card(pathlib.Path(_TO.value), open_source(config.data.alone(split)), title=title, sample=_SAMPLE.value)
    print(f"Wrote {_TO.value}")


def _convert(config: TrainConfig) -> None:
    from uso_jax.data.sources import open_source

    name = _NAME.value or _CONFIG.value.data.source
    specs = {split: config.data.alone(split) for split in _SPLIT.value}
    beam = {} if _BEAM.value is None else dict(specs=specs, beam_options=shlex.split(_BEAM.value))
    _write_set({split: open_source(spec) for split, spec in specs.items()}, _TO.value, name, config, **beam)


def _write_set(sources: dict, data_dir: str, name: str, config: TrainConfig, **beam) -> None:
    from uso_jax.data import card
    from uso_jax.data.tfds import records, writer

    path = writer.prepare(sources, data_dir, name, limit=_LIMIT.value, max_errors=config.data.max_errors, **beam)
    for split in sources:
        made = card.write_card(
            path / f"{split}.html", records.TripletSet(path, split), title=name, sample=_SAMPLE.value
        )
        (path / f"{split}.md").write_text(made.markdown(), encoding="utf-8")
    print(f"Wrote {path}. Train on it: --config.data.source=triplets --config.data.triplets.train.path={path}")


def _precompute(config: TrainConfig) -> None:
    from uso_jax.training.precompute import precompute

    stages = {stage.name: stage for stage in config.run_stages}
    name, split = _STAGE.value or config.run_stages[-1].name, _SPLIT.value[-1]
    if name not in stages:
        raise InputError(f"--stage={name} is not in the run; stages are {', '.join(stages)}.")
    verify_flag.verify(config)
    options = dict(shard_size=_SHARD_SIZE.value, process=_process(), dtype=_DTYPE.value, rewarded=_REWARDS.value)
    count = precompute(config, stages[name], split, _TO.value, **options)
    read = {"prior": f"--config.data.prior.kind=features --config.data.prior.path={_TO.value}"}
    others = f"--config.data.source=features --config.data.features.{split}.path={_TO.value}"
    print(f"Encoded {count} examples. Train on them: {read.get(split, others)}")


def _process() -> tuple[int, int]:
    if not (parts := re.fullmatch(r"(\d+)/(\d+)", _PROCESS.value)):
        raise InputError(f"--process={_PROCESS.value} must be NUMBER/COUNT, such as 0/4.")
    return int(parts[1]), int(parts[2])


# ---------------------------------------------------------------------------------------------------- curation


def _curate(config: TrainConfig, name: str) -> None:
    from uso_jax.curation import steps
    from uso_jax.curation.config import curation_of

    curation, spec = curation_of(config), config.data.alone(_SPLIT.value[-1])
    judge = ("judge",) if curation.keep.judge is not None else ()
    for step in (*STEPS[:4], *judge) if name == "run" else (name,):
        if _BEAM.value is None:
            steps.run_step(step, curation, spec, _TO.value, process=_process(), retry=_RETRY.value)
        else:
            _beam().run_step(step, curation, spec, _TO.value, options=shlex.split(_BEAM.value), retry=_RETRY.value)
    print(f"{name} is done. A report about it: uso-curate report --to {_TO.value}")


def _beam():
    try:
        from uso_jax.curation import beam
    except ImportError as error:
        raise InputError('Apache Beam is not installed: pip install "uso_jax[beam]".') from error
    return beam


def _report(config: TrainConfig) -> None:
    from uso_jax.curation import report
    from uso_jax.curation.config import curation_of
    from uso_jax.curation.store import Folder

    folder = Folder(_TO.value)
    keep = curation_of(config).keep
    decisions = report.write_report(folder, keep, _SAMPLE.value)
    print(report.markdown(folder, keep, decisions))
    print(f"Wrote {folder.path / 'report' / 'index.html'}")


def _export(config: TrainConfig) -> None:
    from uso_jax.curation import report, selection
    from uso_jax.curation.config import curation_of
    from uso_jax.curation.store import Folder

    folder = Folder(_TO.value)
    decisions = report.write_report(folder, curation_of(config).keep, _SAMPLE.value)
    triplets = selection.kept(folder, decisions)
    _write_set({_SPLIT.value[-1]: triplets}, folder.path / "export", _NAME.value or "curated", config)
