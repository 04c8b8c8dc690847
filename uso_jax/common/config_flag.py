# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The flag --config FILE[:VARIANT], with --config.KEY=VALUE, of every command that takes a configuration.

A configuration file has a function `get_config(variant)` that returns nested frozen dataclasses, and a dictionary
`VARIANTS` with the description of each variant.

ml_collections parses the values. It assigns them one by one, which frozen dataclasses do not allow, so it works on a
ConfigDict of the same values, and its changes are applied to the dataclasses at once.
"""

import re
import runpy
import sys
import types
import typing
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from uso_jax.common import config_files, config_help, schema
from uso_jax.common.config_files import DEFAULT
from uso_jax.common.errors import InputError, exit_cleanly


def load_config(name: str) -> Any:
    """Return the configuration of FILE[:VARIANT], such as "uso:flux_dev"; `config_files.find` says which files.

    Raises:
      InputError: the file does not exist, or it raises an error, such as for an unknown variant.
    """
    file, *variant = name.split(":", 1)
    try:
        return runpy.run_path(config_files.find(file))["get_config"](*variant)
    except FileNotFoundError as error:
        raise InputError(f"there is no configuration file {file}") from error
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{file}: {error}") from error


class ConfigFlag:
    """The flag; `value` is the configuration of the file with the changes of the command line."""

    value: Any

    def __init__(self, command: str):
        """Take the name of the module that defines the command's flags."""
        self.command = command

    def parse(self, argv: list[str]) -> list[str]:
        """Parse the command line and return its other arguments.

        Raises:
          InputError: the file, the variant, a setting or a value is wrong; one sentence names it.
        """
        given = re.findall(r"^--?config[=\n](.+)$", "\n".join(argv), re.M)
        file = given[-1] if given else DEFAULT
        config = load_config(file)
        if {"--help", "-help", "-h", "--helpshort", "--helpfull"} & set(argv):
            print(config_help.text(file, config, self.command))
            sys.exit(0)
        about = f"Configuration file, with :VARIANT; default {DEFAULT}."
        if "config" not in flags.FLAGS:
            config_flags.DEFINE_config_file("config", None, about, flag_values=flags.FLAGS, sys_argv=argv)
        flag = flags.FLAGS["config"]
        flag.parser = _Parser(config)
        # The defaults come before the user's flags, which win. absl's verbosity would show JAX's search for a TPU.
        defaults = ["--verbosity=-1"] if given else ["--verbosity=-1", f"--config={file}"]
        try:
            rest = flags.FLAGS([argv[0], *defaults, *argv[1:]])
        except (flags.Error, AttributeError, LookupError, TypeError, ValueError) as error:
            told = _unknown(argv, config) or _mistyped(str(error), config)
            if told is None and (flag := re.match(r"Unknown command line flag '([\w-]+)'", str(error))):
                told = config_help.unknown_flag(flag[1], config)
            raise InputError(told or str(error)) from error
        changes = config_flags.get_override_values(flag)
        plain = {path: value.to_dict() if isinstance(value, ConfigDict) else value for path, value in changes.items()}
        self.value = schema.override(config, plain)
        return rest


class _Parser(flags.ArgumentParser):
    """Return the loaded configuration as the ConfigDict that ml_collections changes."""

    def __init__(self, config: Any):
        self.config = config

    def parse(self, path: str) -> ConfigDict:
        return ConfigDict(_plain(self.config)).lock()


def _plain(config: Any, kind: Any = Any) -> dict[str, Any]:
    """Return nested dictionaries, with placeholders that have a type where a number or text is None."""
    values = {}
    for name, (value, item) in schema.children(config, kind).items():
        if schema.is_section(value):
            value = _plain(value, item)
        elif value is None and isinstance(item, types.UnionType):
            (wanted,) = (arg for arg in typing.get_args(item) if arg is not type(None))
            value = config_dict.placeholder(wanted) if wanted in (bool, int, float, str) else None
        values[name] = value
    return values


def _unknown(argv: list[str], config: Any) -> str | None:
    """Describe the first --config.KEY that the configuration lacks."""
    for path in re.findall(r"^--?(?:no)?config\.([^=\n]+)", "\n".join(argv), re.M):
        value = config
        for name in path.split("."):
            if not schema.is_section(value) or name not in schema.children(value):
                return config_help.unknown(path, config)
            value = schema.children(value)[name][0]
    return None


def _mistyped(message: str, config: Any) -> str | None:
    """Describe a value that ml_collections could not parse."""
    if not (found := re.match(r"flag --config\.([^=\s]+)=(.*?): ", message, re.S)):
        return None
    path, value = found.groups()
    kinds = {field.path: field.kind for field in schema.fields(config)}
    if path not in kinds:
        inner = next(name for name in kinds if name.startswith(f"{path}."))
        return f"--config.{path} is a section and takes no value; set its fields, such as --config.{inner}"
    return f"--config.{path}={value}: {value!r} is not {schema.expected(kinds[path])}"


_FLAGS: list[ConfigFlag] = []


def define(command: str) -> ConfigFlag:
    """Define the flag; `command` is the name of the module that calls this."""
    _FLAGS.append(ConfigFlag(command))
    return _FLAGS[-1]


@exit_cleanly
def parse(argv: list[str]) -> list[str]:
    """Parse a command line for `absl.app.run`; a mistake in it ends in one sentence and exit code 2."""
    return _FLAGS[-1].parse(argv)
