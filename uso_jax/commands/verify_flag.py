# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The flag --verify of commands that take a configuration with a weights directory."""

from absl import flags

from uso_jax import mini, weights
from uso_jax.training.config import TrainConfig

_VERIFY = flags.DEFINE_bool("verify", False, "Compare every file of config.model.weights with its SHA-256 first.")


def verify(config: TrainConfig) -> None:
    """Compare all bytes of the configuration's weights directory with their hashes, if the user asked for it.

    Raises:
      InputError: a file has other bytes than when it was written.
    """
    if _VERIFY.value and config.model.weights:
        weights.verify(mini.directory(config.model.weights))
