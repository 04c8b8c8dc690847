# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The commands of the documentation: found on its pages, and parsed as the real commands parse them, without running.

Run as a script, it parses a JSON list of command lines from stdin and prints the sentences about those that are wrong.
One process parses all, so that the packages are imported once.
"""

import argparse
import contextlib
import importlib
import io
import json
import pathlib
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).parents[2]
MARK = re.compile(r"<!-- not run: needs .+ -->\n$")
_FENCE = re.compile(r"^```bash\n(.*?)^```$", re.M | re.S)
_PARSED_BY_ABSL = ("train", "curate", "plan", "doctor")
_MODULES = {"convert": "convert.__main__", "benchmark": "scripts.benchmark.__main__"}


@dataclass(frozen=True)
class Block:
    """A fenced block of commands: where it is, its text, and whether a comment says what it needs."""

    where: str
    text: str
    marked: bool


def blocks(page: pathlib.Path) -> Iterator[Block]:
    """Yield the blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        before = text[: found.start()]
        yield Block(f"{page.name}:{before.count(chr(10)) + 1}", found[1], MARK.search(before) is not None)


def split(text: str) -> Iterator[list[str]]:
    """Yield the simple commands of a block as words; variables have the first of their values, if it is known."""
    values: dict[str, str] = {}
    for tokens in _lines(text.replace("\\\n", " ")):
        words: list[str] = []
        for token in [*tokens, ";"]:
            if (name := re.fullmatch(r"\$(\w+)", token)) and name[1] not in values:
                continue  # settings that the text around the block gives
            if token.strip(";&|"):
                words.append(re.sub(r"\$(\w+)", lambda name: values.get(name[1], ""), token))
            elif token:
                yield from _simple(words, values)
                words = []
            else:
                words.append("")


def _lines(text: str) -> Iterator[list[str]]:
    """Yield the tokens of each line; a quoted text may have several lines."""
    waiting = ""
    for line in text.splitlines():
        waiting += f"{line}\n"
        lexer = shlex.shlex(waiting, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        try:
            tokens = list(lexer)
        except ValueError:  # a quotation is open
            continue
        waiting = ""
        yield tokens
    assert not waiting, f"{text} has an open quotation"


def _simple(words: list[str], values: dict[str, str]) -> Iterator[list[str]]:
    while words and (words[0] in ("do", "export", "then") or re.fullmatch(r"\w+=.*", words[0])):
        if given := re.fullmatch(r"(\w+)=(.*)", words[0]):
            values[given[1]] = given[2]
        words = words[1:]
    if words[:1] == ["for"]:
        values[words[1]] = words[3]
    elif words:
        yield words


def ours(words: list[str]) -> tuple[str, list[str]] | None:
    """Return the name of this project's command and its arguments, None for another command."""
    line = words[:-1] if words[-1] == "..." else words  # further settings, as the reader has them
    if line[0].startswith("uso-"):
        return line[0].removeprefix("uso-"), line[1:]
    if line[0].startswith("--"):  # settings alone, of a training
        return "train", ["--config", "uso:flux_dev", *line]
    for number, word in enumerate(line[:-1]):
        if re.fullmatch(r"(.*/)?python3?", word):
            rest = line[number + 1 :]
            if rest[:2] == ["-m", "convert"]:
                return "convert", rest[2:]
            if script := re.fullmatch(r"scripts/(\w+)(\.py|/__main__\.py)", rest[0]):
                return script[1], rest[1:]
    return None


def wrong(commands: list[tuple[str, list[str]]]) -> list[str]:
    """Return a sentence for each command that its own parser refuses."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("1", "2"):
            (pathlib.Path(folder) / f"{name}.png").write_bytes(b"")
        for name in dict.fromkeys(name for name, _ in commands):
            parse = _absl_parser(name) if name in _PARSED_BY_ABSL else _argparse_parser(name)
            for arguments in (arguments for other, arguments in commands if other == name):
                # Only the path of the user's images is read while a command line is parsed.
                known = [
                    folder if before == "--data" else word
                    for before, word in zip(["", *arguments], arguments, strict=False)
                ]
                said = io.StringIO()
                with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                    try:
                        parse(known if name == "train" else arguments)
                    except SystemExit as end:
                        if end.code:
                            found.append(f"{name} {shlex.join(arguments)}: {said.getvalue().strip()[-300:]}")
    return found


def _absl_parser(name: str):
    from absl import flags

    from uso_jax.common import config_flag

    def forget(names) -> None:
        for flag in [flag for flag in names if flag in flags.FLAGS]:
            delattr(flags.FLAGS, flag)

    # Commands share names of flags, and each process has one.
    modules = flags.FLAGS.flags_by_module_dict().items()
    forget(flag.name for module, its in modules if module.startswith("uso_jax") for flag in its)
    for module in ("verify_flag", name):
        sys.modules.pop(f"uso_jax.commands.{module}", None)
    importlib.import_module(f"uso_jax.commands.{name}")

    def parse(arguments: list[str]) -> None:
        forget([flag for flag in flags.FLAGS if flag.partition(".")[0] == "config"])
        flags.FLAGS.unparse_flags()
        config_flag.parse([name, *arguments])

    return parse


def _argparse_parser(name: str):
    module = importlib.import_module(_MODULES.get(name, f"uso_jax.commands.{name}"))
    parsed = argparse.ArgumentParser.parse_args

    def parse(arguments: list[str]) -> None:
        def stop(parser, given=None, *more):
            parsed(parser, given, *more)
            raise SystemExit(0)

        argparse.ArgumentParser.parse_args = stop
        try:
            module.main(arguments)
        finally:
            argparse.ArgumentParser.parse_args = parsed

    return parse


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    print(json.dumps(wrong(json.load(sys.stdin))))
