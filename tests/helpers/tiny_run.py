# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A configuration file for `scripts/train.py`: a run of tiny whose steps are mostly waiting, so that it can be hit."""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tiny

VARIANTS = {"tiny": "a stage of a few steps"}


def get_config(variant: str = "tiny"):
    """Return the configuration."""
    del variant
    changes = {"checkpoint.every": 2, "checkpoint.keep": 3}
    if "TINY_DATA" in os.environ:
        names = {"train": os.environ["TINY_DATA"], "heldout": "heldout.json"}
        changes |= {"data.source": "json"} | {f"data.json.{split}.path": name for split, name in names.items()}
    return tiny.config("joint", changes=changes, steps=int(os.environ.get("TINY_STEPS", "8")), ema_decay=0.5)
