# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Join the evaluation tables of several runs: python scripts/compare.py --help."""

from uso_jax.commands import entry_points

if __name__ == "__main__":
    entry_points.compare()
