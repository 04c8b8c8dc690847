# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters for your own images, by base model.

    python scripts/train.py --config finetune --data FOLDER                 mini, in minutes on two CPU cores
    python scripts/train.py --config finetune:flux_dev --data FOLDER        FLUX.1-dev on one chip of 32 GB, or several
    python scripts/train.py --config finetune:flux_dev_16gb --data FOLDER   FLUX.1-dev in 4 bits on one chip of 16 GB
    python scripts/train.py --config finetune:klein --data FOLDER           FLUX.2 [klein] base 4B on one chip of 16 GB

FOLDER holds NAME.png, and optionally NAME.content.png, NAME.style.png and NAME.txt (docs/finetune.md). A part of the
triplets is held out. Steps follow from the number of triplets; --steps sets them. Any value is overridden as always.
"""

import pathlib
import runpy
from dataclasses import replace

from uso_jax.data import recognition
from uso_jax.data.config import DataConfig
from uso_jax.training.config import CheckpointConfig, HeldoutConfig, TrainConfig, override
from uso_jax.training.stage import LORA, by_name

VARIANTS = {
    "mini": "the small USO in the package; minutes on two CPU cores",
    "flux_dev": "FLUX.1-dev in bfloat16; one chip of 32 GB, or several chips",
    "flux_dev_16gb": "FLUX.1-dev in 4 bits; one chip of 16 GB",
    "klein": "FLUX.2 [klein] base 4B in bfloat16 (configs/uso.py:klein_lora); one chip of 16 GB",
}
SHARE = 0.1  # of the triplets is held out, at least one
FEW, MANY = 500, 4000  # bounds of the steps


def get_config(variant: str = "mini", data: str = "", steps: str = "") -> TrainConfig:
    """Return the configuration of one base model.

    Args:
      variant: the base model.
      data: path of the user's images; "": data.source and its paths say it.
      steps: number of steps; "": by the number of triplets.

    Raises:
      ValueError: the variant is unknown, or `steps` is no number.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known are {', '.join(VARIANTS)}")
    uso = runpy.run_path(str(pathlib.Path(__file__).with_name("uso.py")))
    source = recognition.recognise(data) if data else "folder"
    count = recognition.count(source, data) if data else 0
    builders = {
        "mini": lambda: _mini(uso),
        "flux_dev": lambda: _flux_dev(uso, small=False),
        "flux_dev_16gb": lambda: _flux_dev(uso, small=True),
        "klein": lambda: uso["get_config"]("klein_lora"),
    }
    config = builders[variant]()
    (name,) = config.run
    changes = {
        "variant": f"finetune_{variant}",
        "data.source": source,
        f"data.{source}.train.path": data,
        # A hundred steps an image, as trainers of adapters for FLUX suggest.
        f"stages.{name}.steps": int(steps) if steps else min(max(100 * count, FEW), MANY),
    }
    return override(config, changes)


def _mini(uso: dict) -> TrainConfig:
    """Return the adapters of the package's USO, trained on."""
    config = _adapters(uso["get_config"]("mini"), learning_rate=1e-3, batch_size=8, warmup_steps=20)
    return replace(
        config,
        model=replace(config.model, fresh=()),
        data=DataConfig(heldout_share=SHARE),
        heldout=replace(config.heldout, num_batches=1, batch_size=8, grid_every=100, grid_rows=8),
        evaluation=None,
    )


def _flux_dev(uso: dict, small: bool) -> TrainConfig:
    """Return adapters on FLUX.1-dev; those of weights/flux-dev are trained on if it has any.

    Args:
      uso: the names of configs/uso.py.
      small: keep the base in 4 bits, and blocks' inputs on the host.
    """
    config = _adapters(uso["get_config"]("flux_dev"), learning_rate=1e-4, batch_size=1, warmup_steps=50)
    config = replace(
        config,
        data=DataConfig(heldout_share=SHARE, encode_first=True),
        heldout=HeldoutConfig(num_batches=4, batch_size=1, grid_every=250, grid_rows=1),
    )
    return override(config, {"model.quantization": "int4", "model.transformer.remat": "offload"} if small else {})


def _adapters(config: TrainConfig, **changes) -> TrainConfig:
    """Return a run of one stage that trains adapters as the recipe's disentanglement does, without its reward."""
    stage = replace(
        config.stages["disentanglement"],
        name="adapters",
        data={},
        train=LORA,
        content_dropout=0.1,
        style_dropout=0.1,
        reward=None,
        **changes,
    )
    return replace(config, run=("adapters",), stages=by_name(stage), checkpoint=CheckpointConfig(every=250, keep=2))
