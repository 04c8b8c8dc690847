# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Find what a machine, or a run on it, lacks: python scripts/doctor.py --help."""

from uso_jax.commands import entry_points

if __name__ == "__main__":
    entry_points.doctor()
