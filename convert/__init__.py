# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints between torch files and uso_jax: `python -m convert --help`.

The package is installed under the name uso_jax_convert, so its modules import each other relatively.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # as uso_jax.commands does

COMMAND = "python -m convert" if __name__ == "convert" else "uso-convert"
