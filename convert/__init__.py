# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints between torch files and uso_jax: `python -m convert --help`.

The package is installed under the name uso_jax_convert, so its modules import each other relatively.
"""

COMMAND = "python -m convert" if __name__ == "convert" else "uso-convert"
