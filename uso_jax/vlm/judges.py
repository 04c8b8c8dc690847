# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Vision-language models as judges: the protocol, an HTTP endpoint, and replayed answers."""

import datetime
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from uso_jax.common.errors import InputError
from uso_jax.common.json_files import read_json_lines
from uso_jax.vlm.client import Vlm as Client
from uso_jax.vlm.client import VlmError


class NoAnswer(Exception):
    """The judge gave nothing that could be used; the message says why."""


@runtime_checkable
class Vlm(Protocol):
    """A model that answers a prompt about images, which are JPEG or PNG bytes in the order they are shown."""

    name: str

    def __call__(
        self, images: Sequence[bytes], prompt: str, *, round_: int, max_tokens: int, temperature: float | None
    ) -> str:
        """Answer, or raise NoAnswer; rounds of one question are independent."""
        ...


# ---------------------------------------------------------------------------------------------------- judges


class Replay:
    """A judge whose answers are kept; without a model behind it, only kept ones are given."""

    def __init__(self, path: pathlib.Path, vlm: Vlm | None):
        self.path, self._vlm, self._lock = path, vlm, threading.Lock()
        self._kept: dict[str, str] = {}
        self._dates: list[str] = []
        names = set()
        if path.exists():
            data = path.read_bytes()
            if not data.endswith(b"\n"):  # cut short by a kill
                path.write_bytes(data[: data.rfind(b"\n") + 1])
            for number, line in read_json_lines(path, ""):
                if not all(isinstance(line.get(name), str) for name in ("of", "reply", "judge", "date")):
                    raise InputError(f"{path} line {number} is no answer of a judge; remove that line")
                self._kept[line["of"]] = line["reply"]
                names.add(line["judge"])
                self._dates.append(line["date"])
        if vlm is None and len(names) != 1:
            raise InputError(f"--judge replay: {path} holds the answers of {len(names)} judges, but must of one")
        self.name = vlm.name if vlm is not None else names.pop()

    def ask(
        self,
        images: Sequence[bytes],
        prompt: str,
        *,
        round_: int = 0,
        max_tokens: int = 1400,
        temperature: float | None = None,
    ) -> str:
        """Give the kept answer, or ask. Raises NoAnswer."""
        shown = [hashlib.sha256(image).hexdigest() for image in images]
        facts = json.dumps([self.name, prompt, shown, round_, max_tokens, temperature])
        of = hashlib.sha256(facts.encode()).hexdigest()[:24]
        if of in self._kept:
            return self._kept[of]
        if self._vlm is None:
            raise NoAnswer("this question is not among the kept answers")
        reply = self._vlm(images, prompt, round_=round_, max_tokens=max_tokens, temperature=temperature)
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        line = {"of": of, "judge": self.name, "date": date, "reply": reply}
        with self._lock:
            self._kept[of] = reply
            self._dates.append(date)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        return reply

    def record(self) -> dict[str, Any]:
        """Say who answered, and when first and last."""
        return {"model": self.name, "from": min(self._dates, default=None), "to": max(self._dates, default=None)}


class FakeVlm:
    """Answers in the form that is asked for, by a digest of what it is shown: for trying things out."""

    name = "fake"

    def __call__(
        self, images: Sequence[bytes], prompt: str, *, round_: int, max_tokens: int, temperature: float | None
    ) -> str:
        digest = hashlib.sha256(prompt.encode() + b"".join(hashlib.sha256(image).digest() for image in images)).digest()
        if "[first, second]" in prompt:
            return f"[{digest[0] % 11}, {digest[1] % 11}]"
        if '"score"' in prompt:
            return json.dumps({"score": digest[0] % (5 if "from 0 to 4" in prompt else 11), "reasoning": "a digest"})
        return "yes" if digest[0] % 2 else "no"


class Endpoint:
    """A model behind an OpenAI-compatible endpoint; its key is in OPENAI_API_KEY."""

    def __init__(self, model: str, base_url: str):
        # One take: an answer that cannot be read is the judge's, and is kept as such.
        self.name, self._vlm = model, Client(model, base_url, takes=1, api_key=os.environ.get("OPENAI_API_KEY"))

    def __call__(
        self, images: Sequence[bytes], prompt: str, *, round_: int, max_tokens: int, temperature: float | None
    ) -> str:
        options = {"max_tokens": max_tokens} | ({} if temperature is None else {"temperature": temperature})
        try:
            return self._vlm.ask([*images, prompt], take=round_, **options)
        except VlmError as error:
            raise NoAnswer(f"{error.kind}: {error}") from error


def open_judge(spec: str, path: pathlib.Path) -> Replay:
    """Give the judge of a command line: "MODEL@URL", "fake", or "replay" for kept answers alone."""
    if spec == "replay":
        return Replay(path, None)
    if spec == "fake":
        return Replay(path, FakeVlm())
    model, at, url = spec.rpartition("@")
    if not at or not model:
        raise InputError(f"--judge {spec!r} is unknown; give MODEL@URL of an endpoint, fake or replay")
    return Replay(path, Endpoint(model, url))
