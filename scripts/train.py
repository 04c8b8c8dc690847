# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Train USO: python scripts/train.py --config configs/uso.py [--workdir DIR] [--config.KEY=VALUE ...]."""

import pathlib
import sys

from absl import app, flags
from ml_collections import config_flags

from uso_jax.config import from_config_dict
from uso_jax.errors import exit_cleanly
from uso_jax.fit import fit

_CONFIG = config_flags.DEFINE_config_file("config", "configs/uso.py", "Configuration file, with :variant.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and pictures go; default runs/VARIANT.")


@exit_cleanly
def main(_) -> None:
    """Train, then print what was learned."""
    config = from_config_dict(_CONFIG.value)
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{config.variant}")
    print(f"Training variant '{config.variant}' in {workdir}: {', '.join(stage.name for stage in config.stages)}.")
    print("The 12 B model: python scripts/train.py --config configs/uso.py:flux_dev (needs converted weights).")
    summary = fit(config, workdir)
    print(f"\n{'stage':<18}{'steps':>8}{'seconds':>10}{'held-out loss before':>23}{'after':>10}")
    for stage in summary["stages"]:
        print(
            f"{stage['name']:<18}{stage['steps']:>8}{stage['seconds']:>10.0f}"
            f"{stage['heldout_loss_before']:>23.4f}{stage['heldout_loss_after']:>10.4f}"
        )
    print(f"\nPictures: {workdir}/samples   curves: tensorboard --logdir {workdir}/tensorboard")


if __name__ == "__main__":
    app.run(main)
