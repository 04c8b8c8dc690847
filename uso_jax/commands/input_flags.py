# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The flags --data and --steps of commands that take configs/finetune.py: inputs of its `get_config`."""

from absl import flags

NAMES = ("data", "steps")

flags.DEFINE_string("data", None, "Your images, for --config finetune: a folder, list, archive or table.")
flags.DEFINE_integer("steps", None, "Steps of --config finetune; default: by the number of images.")
