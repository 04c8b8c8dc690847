# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Every option of every command has a help text."""

import argparse
import importlib

import pytest
from absl import flags

COMMANDS = ("uso_jax.commands.generate", "uso_jax.commands.app", "uso_jax.commands.evaluate")
COMMANDS += ("uso_jax.commands.style", "uso_jax.commands.compare", "uso_jax.commands.prefer", "convert.__main__")


def lacking(parser, where):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from lacking(inner, f"{where} {name}")
        elif not action.help:
            yield f"{where} {action.option_strings or action.dest}"


@pytest.mark.parametrize("command", COMMANDS)
def test_options(command, monkeypatch):
    made = []

    def stop(parser, *_):
        made.append(parser)
        raise SystemExit

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(SystemExit):
        importlib.import_module(command).main([])
    assert not [text for parser in made for text in lacking(parser, command)] and made


def test_flags():
    importlib.import_module("uso_jax.commands.train")
    found = [
        flag.name
        for module, its in flags.FLAGS.flags_by_module_dict().items()
        if module.startswith("uso_jax.")
        for flag in its
        if not flag.help
    ]
    assert not found
