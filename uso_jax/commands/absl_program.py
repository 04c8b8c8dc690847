# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Run a command whose flags absl parses."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

from uso_jax.common import config_files, config_flag


def run(main: Callable[[Sequence[str]], Any], module: str) -> None:
    """Parse the command line and call `main` with the remaining arguments.

    absl's --help shows the docstring and the flags of `__main__`, which is only a caller here; it is made to show those
    of the command's module.

    Args:
      main: takes the program's name and the arguments that are not flags.
      module: name of the module that describes the command and defines its flags.
    """
    sys.modules["__main__"].__doc__ = sys.modules[module].__doc__
    for flag in flags.FLAGS.get_flags_for_module(module):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(main, flags_parser=lambda argv: config_flag.parse(config_files.expand(argv)))
