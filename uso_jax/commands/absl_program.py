# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Run a command whose flags absl parses."""

from collections.abc import Callable, Sequence
from typing import Any

from absl import app

from uso_jax.common import config_files, config_flag


def run(main: Callable[[Sequence[str]], Any]) -> None:
    """Parse the command line and call `main` with the remaining arguments, after the name of the program."""
    app.run(main, flags_parser=lambda argv: config_flag.parse(config_files.expand(argv)))
