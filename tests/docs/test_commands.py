# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Every command of README and docs is parsed by the real command, or a comment says what it needs."""

import json
import os
import re
import subprocess
import sys
import tomllib

import command_lines

ROOT = command_lines.ROOT
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
RUN = {  # pages whose commands a test runs, as they stand there
    "README.md": ".ci/run",
    "finetune.md": "tests/docs/test_tutorial.py",
}
PLAIN = {"cd", "cp", "done", "echo", "mkdir", "pip", "wait", "tensorboard", "mkdocs", "git", "source"}


def plain(words):
    """Return whether a command is one of the shell, or makes an environment."""
    return words[0] in PLAIN or re.search(r"python3? -m (venv|pytest)|bin/pip install", " ".join(words)) is not None


def found():
    for page in PAGES:
        for block in command_lines.blocks(page):
            for words in command_lines.split(block.text):
                yield block, words


def test_every_command_is_known_or_marked():
    unknown = [
        f"{block.where}: {' '.join(words)[:80]}"
        for block, words in found()
        if not (block.marked or command_lines.ours(words) or plain(words))
    ]
    assert not unknown, "put <!-- not run: needs SOMETHING --> before the block"


def test_extras_that_are_installed_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for block, words in found():
        for names in re.findall(r"(?:uso_jax|\.)\[([\w,]+)\]", " ".join(words)):
            assert set(names.split(",")) <= set(extras), block.where


def test_pages_that_tests_run():
    for page, test in RUN.items():
        assert page in (ROOT / test).read_text()


def test_a_block_is_split_into_commands():
    text = "python scripts/generate.py --prompt '' --x && uso-train \\\n  --config.a=json ... # note\n"
    generate, train, ls, done = command_lines.split(text + "for i in 3 4; do ls $i; done")
    assert command_lines.ours(generate) == ("generate", ["--prompt", "", "--x"])
    assert command_lines.ours(train) == ("train", ["--config.a=json"])
    assert (ls, done) == (["ls", "3"], ["done"])


def test_the_commands_own_parsers_accept_them():
    commands = [one for _, words in found() if (one := command_lines.ours(words))]
    assert len(commands) > 60 and {"train", "generate", "convert", "plan", "curate"} <= {name for name, _ in commands}
    wrong = [("generate", ["--no_such_flag"]), ("train", ["--config.data.sorce=json"])]
    done = subprocess.run(
        [sys.executable, command_lines.__file__],
        input=json.dumps(commands + wrong),
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert sorted(re.search("no_such_flag|sorce", one)[0] for one in said) == ["no_such_flag", "sorce"], said
