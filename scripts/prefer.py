# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Fit a scorer to choices of people: python scripts/prefer.py --help."""

from uso_jax.commands import entry_points

if __name__ == "__main__":
    entry_points.prefer()
