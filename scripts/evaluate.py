# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Judge a model by a public benchmark: python scripts/evaluate.py --help."""

from uso_jax.commands import entry_points

if __name__ == "__main__":
    entry_points.evaluate()
