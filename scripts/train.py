# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Train USO: python scripts/train.py --config configs/uso.py [--workdir DIR] [--config.KEY=VALUE ...]."""

from uso_jax.commands import entry_points

if __name__ == "__main__":
    entry_points.train()
