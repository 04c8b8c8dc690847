# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Plan the memory and time of training or sampling on an accelerator: python scripts/plan.py --help."""

from uso_jax.commands import entry_points

if __name__ == "__main__":
    entry_points.plan()
