# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Train USO: uso-train --config configs/uso.py[:VARIANT] [--workdir DIR] [--config.SETTING=VALUE ...]."""

import logging
import pathlib
import sys

import jax
from absl import app, flags

from uso_jax.commands import input_flags, verify_flag
from uso_jax.common import compat, config_flag
from uso_jax.common.errors import exit_cleanly
from uso_jax.hardware import multihost, peers
from uso_jax.hardware.compilation_cache import keep_compiled_programs
from uso_jax.training.fault_tolerance import Stopped
from uso_jax.training.fit import fit
from uso_jax.training.preflight import check_settings

_CONFIG = config_flag.define(__name__, inputs=input_flags.NAMES)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and images go; default runs/VARIANT.")
_INIT_FROM = flags.DEFINE_string(
    "init_from", None, "The --workdir of another run: a new run starts from its trained weights, with other settings."
)
_JOIN = multihost.define_flags()


def main() -> None:
    """Parse the command line and run the command. User errors end with exit code 2."""
    app.run(_run, flags_parser=config_flag.parse)


@exit_cleanly
def _run(_) -> None:
    """Train, alone or as one of several processes, then print the results."""
    config = _CONFIG.value
    check_settings(config)
    compat.silence_closed_loops()
    # Orbax reports every save and every missing optional file; of a failed save, asyncio reports the other files.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{config.variant}")
    _JOIN()
    keep_compiled_programs()
    # These lines come before JAX looks for devices, which can take a while.
    print(f"Training variant '{config.variant}' in {workdir}: {', '.join(stage.name for stage in config.run_stages)}.")
    if config.variant == "mini":
        print("The 12 B model: uso-train --config configs/uso.py:flux_dev (needs converted weights).")
    print(end="", flush=True)
    with peers.together():
        verify_flag.verify(config)
        try:
            summary = fit(config, workdir, _INIT_FROM.value, sys.argv[1:])
        except Stopped as stopped:
            if jax.process_index() == 0:
                print(stopped.sentence, flush=True)
            raise
    if jax.process_index() == 0:
        report(summary, workdir)


def report(summary: dict, workdir: pathlib.Path) -> None:
    """Print losses, evaluation tables and where the images are."""
    print(f"\n{'stage':<18}{'steps':>8}{'seconds':>10}{'held-out loss before':>23}{'after':>10}")
    for stage in summary["stages"]:
        print(
            f"{stage['name']:<18}{stage['steps']:>8}{stage['seconds']:>10.0f}"
            f"{stage['heldout_loss_before']:>23.4f}{stage['heldout_loss_after']:>10.4f}"
        )
    if "evaluation" in summary:
        print("\n" + evaluation_table("held-out images", summary["evaluation"]))
        for name, table in summary["tables"].items():
            print("\n" + evaluation_table(name.replace("_", " "), table))
    print(f"\nImages: {workdir}/samples   curves: tensorboard --logdir {workdir}/tensorboard")


def evaluation_table(title: str, evaluation: dict[str, dict[str, float]]) -> str:
    """Lay out what held-out images are worth: of the model before and after, of the truth, of either reference."""
    figures = list(evaluation["target"])
    rows = [f"{title:<18}" + "".join(f"{name.replace('_', ' '):>{_width(name)}}" for name in figures)]
    for name in (
        n for n in ("before", "after", "told_in_words", "target", "copy_content", "copy_style") if n in evaluation
    ):
        values = [evaluation[name][figure] for figure in figures]
        cells = [f"{value:>{_width(figure)}.3f}" for figure, value in zip(figures, values, strict=True)]
        rows.append(f"{name.replace('_', ' '):<18}" + "".join(cells))
    return "\n".join(rows)


def _width(name: str) -> int:
    return max(len(name) + 2, 8)
