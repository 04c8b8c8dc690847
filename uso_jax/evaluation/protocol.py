# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How a benchmark asks its judge, as data: the conversation, its parameters, the images' encoding, rounds and readers.

Each adapter in `benchmarks` states the protocol of the benchmark's own code. The texts are this project's wording of
the published rubrics; `Wording.read` takes the published texts, with the reader that belongs to them.
"""

import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.evaluation.items import EvalItem

_PLACEHOLDER = re.compile(r"\{([a-z]+)\}")  # of this project's texts; {"score": ...} is none
REFERENCES, MADE, PROMPT = "<references>", "<made>", "<prompt>"  # parts of a turn besides the names of texts


@dataclass(frozen=True)
class Reader:
    """Reads a reply: `strict` accepts what the text asked for, `official` what the benchmark's code accepts.

    Both return None for a reply that they cannot read.
    """

    name: str
    strict: Callable[[str], float | None]
    official: Callable[[str], float | None]


@dataclass(frozen=True)
class Encoding:
    """How images become files for the judge.

    Attributes:
      as_file: send the file itself; otherwise a JPEG at PIL's default quality, 75.
      squash: side of the square that images are resized to; 0 keeps their shape.
      most: pixels of an image beyond which it is shrunk; 0 keeps its size.
      multiple: sides are rounded down to multiples of this.
      detail: the endpoint's setting of that name; "" sends none.
    """

    as_file: bool = False
    squash: int = 0
    most: int = 0
    multiple: int = 1
    detail: str = ""


@dataclass(frozen=True)
class Text:
    """A text of a protocol.

    Attributes:
      own: this project's wording; placeholders are written {name}.
      needs: placeholders that the text must have, as the published code spells them, by name.
      file: name of the published text in the folder of --judge_prompts.
      strip: the published code strips the text.
    """

    own: str
    file: str
    needs: Mapping[str, str] = field(default_factory=dict)
    strip: bool = False


@dataclass(frozen=True)
class Question:
    """A conversation that ends with the judge's answer.

    Attributes:
      turns: who speaks, and the parts in order: names of texts, REFERENCES, MADE or PROMPT.
      reader: of answers to this project's texts.
      published: reader of answers to the published texts.
      parameters: in addition to those of the protocol.
    """

    turns: tuple[tuple[str, tuple[str, ...]], ...]
    reader: Reader
    published: Reader
    parameters: Mapping[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Attempts:
    """How often questions are asked whose reply cannot be read.

    Attributes:
      most: attempts.
      stop: the first readable one counts; otherwise all are made, and the last readable one counts.
      together: the questions of an image share their attempts: one unreadable reply asks all of them again.
      guess: a question without a readable reply gets a random whole number from 0 to 10.
    """

    most: int
    stop: bool = True
    together: bool = False
    guess: bool = False


STRICT = Attempts(3)


@dataclass(frozen=True)
class JudgeProtocol:
    """How a benchmark asks its judge.

    Attributes:
      source: files of the published code that it was taken from.
      texts: by name.
      questions: by name.
      figures: item -> figure -> the question whose answer is its value; the order is the order of asking.
      parameters: sent with every request; nothing else is.
      fresh_seed: every request has a seed, a different one each.
      references: encoding of the item's images.
      made: encoding of the generated image.
      rounds: independent scorings; a figure has one value each.
      official: attempts of the published code, for --compat. By default, each question has three.
    """

    source: str
    texts: Mapping[str, Text]
    questions: Mapping[str, Question]
    figures: Callable[[EvalItem], Mapping[str, str]]
    parameters: Mapping[str, float | int] = field(default_factory=dict)
    fresh_seed: bool = False
    references: Encoding = Encoding()
    made: Encoding = Encoding()
    rounds: int = 1
    official: Attempts = STRICT

    def facts(self) -> dict[str, Any]:
        """Return what replies depend on besides texts and images, as JSON."""
        asked = {
            name: [[role, *parts] for role, parts in one.turns] + ([dict(one.parameters)] if one.parameters else [])
            for name, one in self.questions.items()
        }
        encodings = [[*vars(one).values()] for one in (self.references, self.made)]
        digest = hashlib.sha256(json.dumps([asked, encodings, [*vars(self.official).values()]]).encode())
        parameters = dict(self.parameters) | ({"seed": "a different one each"} if self.fresh_seed else {})
        return {"parameters": parameters, "rounds": self.rounds, "protocol": digest.hexdigest()[:12]}


@dataclass(frozen=True)
class Wording:
    """The texts that a run uses, and so the readers.

    Attributes:
      texts: by name.
      spelled: how placeholders are spelled, by name of the text and of the placeholder.
      published: they are the published texts.
      origin: for the summary.
    """

    texts: Mapping[str, str]
    spelled: Mapping[str, Mapping[str, str]]
    published: bool = False
    origin: str = "this project"

    @classmethod
    def own(cls, protocol: JudgeProtocol, texts: Mapping[str, str] = MappingProxyType({})) -> "Wording":
        """Return this project's wording, with `texts` of the same form in place of some."""
        mine = {name: texts.get(name, text.own) for name, text in protocol.texts.items()}
        spelled = {name: {need: f"{{{need}}}" for need in text.needs} for name, text in protocol.texts.items()}
        return cls(mine, spelled, origin="the user" if texts.keys() & mine.keys() else "this project")

    @classmethod
    def read(cls, path: pathlib.Path, protocol: JudgeProtocol, known: Mapping[str, JudgeProtocol]) -> "Wording":
        """Read --judge_prompts: a folder of published texts, or a JSON file of texts that replace this project's.

        Args:
          path: the folder or file.
          protocol: of the benchmark.
          known: protocols of all benchmarks; a JSON file may hold texts of others.

        Raises:
          InputError: a text is missing, unknown or lacks a placeholder.
        """
        where = f"--judge_prompts {path}"
        if not path.is_dir():
            texts = untrusted.json(path, dict[str, str], where)
            names = {name for one in known.values() for name in one.texts}
            if unknown := texts.keys() - names:
                raise InputError(f"{where}: unknown name {min(unknown)!r}; known are {', '.join(sorted(names))}")
            found = cls.own(protocol, texts)
        else:
            found = cls(
                {name: _published(path / text.file, text) for name, text in protocol.texts.items()},
                {name: text.needs for name, text in protocol.texts.items()},
                published=True,
                origin="published",
            )
        for name, text in found.texts.items():
            for placeholder in found.spelled[name].values():
                if placeholder not in text:
                    shown = f"{path / protocol.texts[name].file}" if found.published else f"{where}: text {name!r}"
                    raise InputError(f"{shown} lacks {placeholder}, in whose place the item's text is put; add it")
            if not found.published and (extra := set(_PLACEHOLDER.findall(text)) - {*protocol.texts[name].needs}):
                raise InputError(f"{where}: text {name!r} has {{{min(extra)}}}, which nothing replaces; remove it")
        return found

    def filled(self, name: str, values: Mapping[str, str]) -> str:
        """Return a text with the item's values in place of its placeholders."""
        text = self.texts[name]
        for need, placeholder in self.spelled[name].items():
            text = text.replace(placeholder, values[need])
        return text

    def reader(self, question: Question) -> Reader:
        """Return the reader of replies to these texts."""
        return question.published if self.published else question.reader

    def facts(self) -> dict[str, str]:
        """Return a digest of the texts, and whose they are."""
        digest = hashlib.sha256(repr(sorted(self.texts.items())).encode()).hexdigest()[:12]
        return {"prompts": digest, "prompts_of": self.origin}


def _published(path: pathlib.Path, text: Text) -> str:
    missing = f"{path} does not exist; --judge_prompts needs every text of the benchmark, see docs/protocols.md"
    found = untrusted.text(path, missing=missing, remedy="save the published text again")
    return found.strip() if text.strip else found
