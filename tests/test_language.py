# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Words that code and documents avoid, so that the language stays plain.

Data keep their words: captions, prompts and the keys of files that users own are listed in PICTURES with the reason.
"""

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SUFFIXES = (".py", ".md", ".ipynb", ".toml", ".html")

# Paths (files, or directories that end in /) whose text is not revised yet. Must end up empty.
PENDING: tuple[str, ...] = ()

HABITS = {  # pattern: what to write instead
    r"""(?:\\?"){3}\s*(?:Give|Tell)s?\b|'''\s*(?:Give|Tell)s?\b""": "docstrings begin with Return, Compute, Load, ...",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\bof (?:its|their|his|her|one's|my|our|your) own\b": "a separate ..., its, your ...",
    r"\b(?:is|are) not here\b": "is missing, you do not have",
    r"\b(?:the|a) remedy\b": "how to fix it",
    r"\bput(?:s|ting)? up with\b": "tolerate",
    r"\bso many\b": "the number",
    r"\bmay be said\b": "can be set",
    r"\bnothing is told\b": "say what is unknown",
    r"\bwhole or not at all\b": "atomically",
    r"\ba checkpoint, what it says\b": "the contents of a checkpoint",
}

PICTURES = {  # text that may contain the word: why
    "a picture of": "caption template; the bundled text encoders are trained on it",
    "what this picture shows": "prompt of a vision-language model",
    '"pictures"': "key of an evaluation's summary.json",
    "told.pictures.": "key of an evaluation's summary.json",
    "pictures: dict": "key of an evaluation's summary.json",
    "picture: NotRequired": "key of a curation's rows",
    '"picture"': "key of score logs and of a curation's rows",
    '"--pictures"': "alias of a command-line flag",
    "`pictures`": "option of the reader uso_eval",
    'pictures: str = ""': "option of the reader uso_eval",
    "_file(pictures,": "option of the reader uso_eval",
    "if pictures else": "option of the reader uso_eval",
}


def _texts():
    """Yield (relative path, text) of the files that git tracks or could add."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in sorted(set(listed.stdout.splitlines())):
        path = ROOT / name
        if name.endswith(SUFFIXES) and path.is_file() and path != pathlib.Path(__file__).resolve():
            yield name, path.read_text(encoding="utf-8")


def _found(pattern: re.Pattern, name: str, text: str) -> list[str]:
    return [
        f"{name}:{text.count(chr(10), 0, hit.start()) + 1}: {hit[0].splitlines()[-1]!r}"
        for hit in pattern.finditer(text)
    ]


def _revised():
    return ((name, text) for name, text in _texts() if not name.startswith(PENDING))


def test_no_old_habits():
    patterns = [(re.compile(pattern, re.IGNORECASE), instead) for pattern, instead in HABITS.items()]
    wrong = [
        f"{place}  ->  {instead}"
        for name, text in _revised()
        for pattern, instead in patterns
        for place in _found(pattern, name, text)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_word_is_image():
    wrong = []
    for name, text in _revised():
        for allowed in PICTURES:
            text = text.replace(allowed, "")
        wrong += _found(re.compile(r"(?i)pictures?"), name, text)
    assert not wrong, "\n".join(wrong)


def test_allowed_words_occur():
    texts = "\n".join(text for _, text in _texts())
    assert not [allowed for allowed in PICTURES if allowed not in texts]


def test_pending_paths_exist():
    names = [name for name, _ in _texts()]
    assert all(any(name.startswith(path) for name in names) for path in PENDING)
