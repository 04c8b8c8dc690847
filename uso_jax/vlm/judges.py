# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Vision-language models as judges in evaluation: the protocol, an HTTP endpoint, and a cache of answers.

A judge is called with a conversation and returns text, or raises NoAnswer. Answers are appended to judge.jsonl under a
digest of the judge's name, the conversation, its parameters and the round, so no question is asked twice and a run can
be repeated without the model. The records differ from those of `vlm.client`'s cache: they carry the judge's name and
the date, which reports show, and a damaged line is an error instead of being skipped.
"""

import datetime
import hashlib
import json
import os
import pathlib
import re
import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, TypedDict, runtime_checkable

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.vlm.client import Shown, Turn, Vlm, VlmError

Parameters = Mapping[str, float | int]


class NoAnswer(Exception):
    """The judge returned nothing usable; the message is the reason."""


@runtime_checkable
class Judge(Protocol):
    """A model that answers at the end of a conversation about images."""

    name: str

    def __call__(self, turns: Sequence[Turn], *, round_: int, parameters: Parameters) -> str:
        """Return the answer.

        Args:
          turns: the conversation, which ends with the user's turn.
          round_: index of an independent repetition of the same question.
          parameters: of sampling, such as "temperature" and "max_tokens"; the judge's defaults hold for others.

        Raises:
          NoAnswer: there is no usable answer.
        """
        ...


class CachedJudge:
    """A judge that stores every answer in a file; without a model behind it, it only replays stored answers."""

    def __init__(self, path: pathlib.Path, judge: Judge | None):
        """Read the stored answers.

        Args:
          path: judge.jsonl; need not exist if there is a judge.
          judge: answers new questions; None only replays.

        Raises:
          InputError: the file is damaged, or cannot be replayed because it holds answers of no or several judges.
        """
        self.path, self._judge, self._lock = path, judge, threading.Lock()
        self._kept: dict[str, str] = {}
        self._dates: list[str] = []
        names = set()
        if path.exists():
            _drop_torn_line(path)
            for _, line in untrusted.json_lines(path, _Stored, remedy="remove that line"):
                self._kept[line["of"]] = line["reply"]
                names.add(line["judge"])
                self._dates.append(line["date"])
        if judge is None and len(names) != 1:
            raise InputError(f"--judge replay: {path} must hold the answers of one judge, not of {len(names)}")
        self.name = judge.name if judge is not None else names.pop()

    def ask(self, turns: Sequence[Turn], *, round_: int = 0, parameters: Parameters = MappingProxyType({})) -> str:
        """Return the stored answer, or ask the judge and store its answer.

        Raises:
          NoAnswer: the judge has no usable answer, or there is no judge.
        """
        shown = [[turn.role, [_described(part) for part in turn.parts]] for turn in turns]
        facts = json.dumps([self.name, shown, round_, dict(parameters)], sort_keys=True)
        of = hashlib.sha256(facts.encode()).hexdigest()[:24]
        if of in self._kept:
            return self._kept[of]
        if self._judge is None:
            raise NoAnswer("this question is not among the stored answers")
        reply = self._judge(turns, round_=round_, parameters=parameters)
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        line = {"of": of, "judge": self.name, "date": date, "reply": reply}
        with self._lock:
            self._kept[of] = reply
            self._dates.append(date)
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            except OSError as error:
                raise InputError(f"cannot write the answer to {self.path} ({error.strerror})") from error
        return reply

    def record(self) -> dict[str, Any]:
        """Return the judge's name and the dates of its first and last answer, as JSON."""
        return {"model": self.name, "from": min(self._dates, default=None), "to": max(self._dates, default=None)}


def _described(part: str | Shown) -> str | list[str]:
    return part if isinstance(part, str) else [hashlib.sha256(part.file).hexdigest(), part.detail]


class _Stored(TypedDict):
    of: str
    reply: str
    judge: str
    date: str


def _drop_torn_line(path: pathlib.Path) -> None:
    """Cut off a last line without its end, which an interrupted write left."""
    try:
        with path.open("rb+") as file:
            end = file.seek(0, os.SEEK_END)
            size = 1 << 16
            for start in range(end - size, -size, -size):
                file.seek(max(start, 0))
                found = file.read(min(size, start + size)).rfind(b"\n")
                if found >= 0:
                    file.truncate(max(start, 0) + found + 1)
                    return
            file.truncate(0)
    except OSError as error:
        raise InputError(f"cannot open the stored answers {path} ({error.strerror}); check its permissions") from error


class FakeJudge:
    """A judge for dry runs: answers in the requested form, derived from a digest of prompt and images."""

    name = "fake"

    def __call__(self, turns: Sequence[Turn], *, round_: int, parameters: Parameters) -> str:
        described = [_described(part) for turn in turns for part in turn.parts]
        text = " ".join(part for part in described if isinstance(part, str))
        digest = hashlib.sha256(json.dumps(described).encode()).digest()
        if "[first, second]" in text:
            return f"[{digest[0] % 11}, {digest[1] % 11}]"
        if '"score"' in text:
            return json.dumps({"score": digest[0] % (5 if "from 0 to 4" in text else 11), "reasoning": "a digest"})
        return "yes" if digest[0] % 2 else "no"


class EndpointJudge:
    """A judge behind an OpenAI-compatible endpoint; the key is read from OPENAI_API_KEY."""

    def __init__(self, model: str, base_url: str, *, key_over_http: bool = False):
        key = os.environ.get("OPENAI_API_KEY")
        self.name, self._vlm = model, Vlm(model, base_url, api_key=key, key_over_http=key_over_http)

    def __call__(self, turns: Sequence[Turn], *, round_: int, parameters: Parameters) -> str:
        try:
            return self._vlm.converse(turns, **parameters)
        except VlmError as error:
            raise NoAnswer(f"{error.kind}: {error}") from error


def open_judge(spec: str, path: pathlib.Path, *, key_over_http: bool = False) -> CachedJudge:
    """Return the judge that --judge names: "MODEL@URL", "fake", or "replay" for stored answers only.

    Args:
      spec: the value of --judge.
      path: file of stored answers.
      key_over_http: send the key unencrypted to an endpoint on another machine.

    Raises:
      InputError: `spec` has another form, the stored answers are damaged, or the key would be sent unencrypted.
    """
    if spec == "replay":
        return CachedJudge(path, None)
    if spec == "fake":
        return CachedJudge(path, FakeJudge())
    found = re.fullmatch(r"(.+?)@(https?://.*)", spec)  # a model's name may contain an @, and so may a URL
    if not found:
        raise InputError(
            f"--judge {spec!r} is unknown; use MODEL@URL of an endpoint at http:// or https://, fake or replay"
        )
    return CachedJudge(path, EndpointJudge(*found.groups(), key_over_http=key_over_http))
