# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Serve images over HTTP: python scripts/serve.py --help."""

from uso_jax.commands import entry_points

if __name__ == "__main__":
    entry_points.serve()
