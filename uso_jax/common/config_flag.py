# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The flag --config FILE[:VARIANT], with --config.KEY=VALUE, of every command that takes a configuration."""

import difflib
import functools
import re
from collections.abc import Iterator

from absl import flags
from ml_collections import ConfigDict, config_flags

from uso_jax.common.errors import InputError, exit_cleanly

_DEFAULT = "configs/uso.py"


@functools.cache
def define() -> flags.FlagHolder:
    """Define the flag; its value is the configuration."""
    return config_flags.DEFINE_config_file("config", None, f"Configuration file, with :variant; default {_DEFAULT}.")


@exit_cleanly
def parse(argv: list[str]) -> list[str]:
    """Parse the command line and load the configuration; a mistake in either ends in one sentence."""
    given = re.search(r"^--?config[=\n](.+)$", "\n".join(argv), re.M)
    file = given[1] if given else _DEFAULT
    try:
        # Before the user's own, which win. absl's default verbosity would show JAX's search for a TPU.
        defaults = ["--verbosity=-1"] if given else ["--verbosity=-1", f"--config={file}"]
        rest = flags.FLAGS([argv[0], *defaults, *argv[1:]])
        _ = flags.FLAGS["config"].value.variant  # a file that cannot be read is only reported when it is used
        return rest
    except (flags.Error, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        # What a configuration file raises comes as a printed traceback, which ends in the message.
        message = str(error).strip().splitlines()[-1].strip().rpartition("Error: ")[2]
        raise InputError(_unknown_setting(argv, file) or message) from error


def _unknown_setting(argv: list[str], file: str) -> str | None:
    """Name the first --config.KEY that the configuration lacks, and the most similar one that it has."""
    try:
        known = set(_keys(flags.FLAGS["config"].parser.parse(file)))
    except (OSError, TypeError, ValueError):
        return None
    for key in re.findall(r"^--?config\.([^=\n]+)", "\n".join(argv), re.M):
        if key not in known:
            similar = difflib.get_close_matches(key, sorted(known), 1, cutoff=0)[0]
            return f"there is no setting --config.{key}; did you mean --config.{similar}?"
    return None


def _keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, ConfigDict):
            yield from _keys(value, f"{prefix}{key}.")
