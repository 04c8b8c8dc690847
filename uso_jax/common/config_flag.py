# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The flag --config FILE[:VARIANT], with --config.KEY=VALUE, of every command that takes a configuration.

A configuration file has a function `get_config(variant)` that returns nested frozen dataclasses, and a dictionary
`VARIANTS` with the description of each variant. The function may take further inputs, which are flags of a command.

ml_collections parses the values. It assigns them one by one, which frozen dataclasses do not allow, so it works on a
ConfigDict of the same values, and its changes are applied to the dataclasses at once.
"""

import inspect
import re
import runpy
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from uso_jax.common import config_files, config_help, schema
from uso_jax.common.config_files import DEFAULT
from uso_jax.common.errors import InputError, exit_cleanly


def load_config(name: str, inputs: Mapping[str, str] | None = None) -> Any:
    """Return the configuration of FILE[:VARIANT], such as "uso:flux_dev"; `config_files.find` says which files.

    Args:
      name: of the file and the variant.
      inputs: further arguments of the file's `get_config`, by name.

    Raises:
      InputError: the file does not exist, or it raises an error, such as for an unknown variant; or it takes no such
        input.
    """
    file, *variant = name.split(":", 1)
    try:
        build = runpy.run_path(config_files.find(file))["get_config"]
        if strange := [key for key in inputs or {} if key not in inspect.signature(build).parameters]:
            raise InputError(f"{file} takes no --{strange[0]}; --config finetune does, see docs/finetune.md")
        return build(*variant, **inputs or {})
    except FileNotFoundError as error:
        raise InputError(f"there is no configuration file {file}") from error
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{file}: {error}") from error


class ConfigFlag:
    """The flag; `value` is the configuration of the file with the changes of the command line."""

    value: Any

    def __init__(self, command: str, inputs: Sequence[str] = ()):
        """Take the name of the module that defines the command's flags, and those that are inputs of `get_config`."""
        self.command, self.inputs = command, inputs

    def parse(self, argv: list[str]) -> list[str]:
        """Parse the command line and return its other arguments.

        Raises:
          InputError: the file, the variant, a setting or a value is wrong; one sentence names it.
        """
        given = _values("config", argv)
        file = given[-1] if given else DEFAULT
        inputs = {name: found[-1] for name in self.inputs if (found := _values(name, argv))}
        config = load_config(file, inputs)
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


def _values(flag: str, argv: list[str]) -> list[str]:
    """Return the values of a flag on a command line."""
    return re.findall(rf"^--?{flag}[=\n](.+)$", "\n".join(argv), re.M)


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


def define(command: str, inputs: Sequence[str] = ()) -> ConfigFlag:
    """Define the flag.

    Args:
      command: name of the module that calls this.
      inputs: names of its flags that are arguments of the configuration file's `get_config`.
    """
    _FLAGS.append(ConfigFlag(command, inputs))
    return _FLAGS[-1]


@exit_cleanly
def parse(argv: list[str]) -> list[str]:
    """Parse a command line for `absl.app.run`; a mistake in it ends in one sentence and exit code 2."""
    return _FLAGS[-1].parse(argv)
