# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Write the pages of the documentation that follow from the code: commands, settings and the Python names.

MkDocs runs this while it builds the site (mkdocs.yml); it needs the package and its extras `app` and `docs`.
"""

import concurrent.futures
import os
import pathlib
import runpy
import subprocess
import sys

import mkdocs_gen_files

import uso_jax
from uso_jax.common import config_help

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMANDS = {  # command -> arguments that start it from a checkout
    "uso-train": ["scripts/train.py"],
    "uso-generate": ["scripts/generate.py"],
    "uso-app": ["scripts/app.py"],
    "uso-serve": ["scripts/serve.py"],
    "uso-convert": ["-m", "convert"],
    "uso-style": ["scripts/style.py"],
    "uso-curate": ["scripts/curate.py"],
    "uso-evaluate": ["scripts/evaluate.py"],
    "uso-plan": ["scripts/plan.py"],
    "uso-compare": ["scripts/compare.py"],
    "uso-prefer": ["scripts/prefer.py"],
    "uso-doctor": ["-m", "uso_jax.commands.doctor"],
}
WIDTH = 100  # columns


def help_of(arguments: list[str]) -> str:
    """Return what a command prints for --help, without the settings of configurations, which have their own page."""
    environment = os.environ | {"COLUMNS": str(WIDTH), "JAX_PLATFORMS": "cpu"}
    found = subprocess.run(
        [sys.executable, *arguments, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return found.stdout.partition("\nSettings of ")[0].rstrip()


def commands() -> str:
    """Return the page of commands."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        texts = dict(zip(COMMANDS, pool.map(help_of, COMMANDS.values()), strict=True))
    parts = (f"## {name}\n\n```text\n{text}\n```\n" for name, text in texts.items())
    return "# Commands\n\nWhat each command prints for `--help`.\n\n" + "\n".join(parts)


def settings() -> str:
    """Return the page of settings: those of FLUX.1-dev's training, and the variants of every configuration file."""
    lines = [
        "# Settings",
        "",
        "`--config FILE:VARIANT` names a configuration; `--config.SETTING=VALUE` changes it.",
        "",
    ]
    for file in sorted((ROOT / "configs").glob("*.py")):
        lines += [f"## {file.stem}", "", "| variant | description |", "|---|---|"]
        lines += [f"| `{name}` | {text} |" for name, text in runpy.run_path(str(file))["VARIANTS"].items()] + [""]
    config = runpy.run_path(str(ROOT / "configs" / "uso.py"))["get_config"]("flux_dev")
    lines += ["## All settings", "", "With their values in `uso:flux_dev`; `*` stands for each name.", ""]
    before = None
    for path, value, doc in config_help.settings(config):
        if (section := path.partition(".")[0]) != before:
            lines += ["", f"### {section}", "", "| setting | value | meaning |", "|---|---|---|"]
            before = section
        lines.append(f"| `{path}` | `{_cell(value)}` | {_cell(doc)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def python() -> str:
    """Return the page of the public names, which mkdocstrings fills in."""
    names = sorted(name for name in uso_jax.__all__ if name != "load_config")
    found = (f"::: {getattr(uso_jax, name).__module__}.{name}" for name in names)
    return "# Python\n\nThese names are imported from `uso_jax`.\n\n" + "\n\n".join(found) + "\n"


for page in (commands, settings, python):
    with mkdocs_gen_files.open(f"reference/{page.__name__}.md", "w") as file:
        file.write(page())
