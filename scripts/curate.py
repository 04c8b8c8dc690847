# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Prepare data: python scripts/curate.py --help."""

from uso_jax.commands import entry_points

if __name__ == "__main__":
    entry_points.curate()
