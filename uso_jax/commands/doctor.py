# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Find what a machine, or a run on it, lacks: uso-doctor [--config CONFIG[:VARIANT]] [--folder DIR].

Without --config, the machine alone is examined. With it, the run's memory and a lower bound of its time are estimated.
Nothing is downloaded, read as a whole or allocated. The exit code is 2 if there is a problem.
"""

import dataclasses
import itertools
import json
import pathlib
import shutil
import sys
import textwrap
from collections.abc import Iterable

from absl import app, flags

from uso_jax import mini
from uso_jax.commands import input_flags
from uso_jax.common import config_flag
from uso_jax.common.errors import exit_cleanly
from uso_jax.planning import checkup, machine
from uso_jax.planning.finding import Finding

_CONFIG = config_flag.define(__name__, inputs=input_flags.NAMES)
_FOLDER = flags.DEFINE_string("folder", "runs", "Where the run will write, its --workdir.")
_JSON = flags.DEFINE_bool("json_lines", False, "Print the findings as JSON lines.")
_MARKS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}


def main() -> None:
    """Parse the command line and run the command. User errors end with exit code 2."""
    app.run(_run, flags_parser=config_flag.parse)


@exit_cleanly
def _run(_: list[str]) -> None:
    """Print the findings as they are made."""
    given = any(argument.lstrip("-").startswith("config") for argument in sys.argv[1:])
    has_weights = given and mini.directory(_CONFIG.value.model.weights).is_dir()
    found = machine.examine(pathlib.Path(_FOLDER.value), downloads=not has_weights)
    findings = itertools.chain(found, checkup.examine(_CONFIG.value) if given else ())
    problems = report_json(findings) if _JSON.value else report(findings)
    if problems:
        sys.exit(2)


def report_json(findings: Iterable[Finding]) -> int:
    """Print findings as JSON lines and return the number of problems."""
    problems = 0
    for one in findings:
        problems += one.state == "problem"
        print(json.dumps(dataclasses.asdict(one)), flush=True)
    return problems


def report(findings: Iterable[Finding]) -> int:
    """Print findings as lines and return the number of problems."""
    width = max(min(shutil.get_terminal_size().columns, 120), 40)
    problems = notes = 0
    for one in findings:
        problems, notes = problems + (one.state == "problem"), notes + (one.state == "note")
        head = f"{_MARKS[one.state]:<8}{one.subject:<15}"
        print(textwrap.fill(one.text, width, initial_indent=head, subsequent_indent=" " * len(head)))
        if one.remedy:
            indent = " " * (len(head) + 2)
            print(textwrap.fill(one.remedy, width, initial_indent=" " * len(head) + "> ", subsequent_indent=indent))
        sys.stdout.flush()
    many = lambda count, what: f"{count} {what}{'' if count == 1 else 's'}"
    print(f"\n{many(problems, 'problem')}, {many(notes, 'note')}")
    return problems
