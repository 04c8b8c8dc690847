# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Client for a vision-language model behind an OpenAI-compatible endpoint.

    vlm = Vlm("qwen2.5-vl-7b", "http://localhost:8000/v1", cache="answers.jsonl")
    score = vlm.ask(["Rate the likeness from 0 to 4.", image_a, image_b], parse=read_score)

All answers are cached in a JSON-lines file, including those that `parse` rejects. A question is never sent twice, so a
run can be repeated from its cache alone, without an endpoint, with the same parsing failures. A missing answer raises
`VlmError`; no value is substituted. The endpoint is not trusted (`uso_jax.common.http`), and its key is in no file.
"""

import base64
import hashlib
import io
import json
import os
import pathlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar

import numpy as np
import tenacity
from PIL import Image

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.common.http import HttpAnswer, HttpError, HttpServer
from uso_jax.images.reference import ImageLike, Reference
from uso_jax.vlm.config import VlmConfig

Answer = TypeVar("Answer")
Kind = Literal["timeout", "busy", "unreachable", "refused", "nonsense", "missing"]
_LOSSLESS = 256 * 256  # images of at most this many pixels are sent as PNG, larger ones as JPEG
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # statuses that are retried
_MISTAKES = {401: "check the key", 403: "check the key", 404: "check the address and the model name"}


class Shown(NamedTuple):
    """An image file in a conversation; `detail` is the endpoint's setting of that name, "" sends none."""

    file: bytes
    detail: str = ""


class Turn(NamedTuple):
    """One message of a conversation: who speaks, and texts and images in order."""

    role: Literal["user", "assistant"]
    parts: tuple[str | Shown, ...]


class VlmError(Exception):
    """A question has no usable answer; `kind` is the reason.

    timeout, busy (429 and 5xx), unreachable: all tries failed. refused: the endpoint rejects the question. nonsense: no
    answer could be parsed. missing: the answer is not in the cache and there is no endpoint.
    """

    def __init__(self, kind: Kind, reason: str):
        super().__init__(reason)
        self.kind = kind


class Vlm:
    """A client for one model. Thread-safe."""

    def __init__(
        self,
        model: str,
        base_url: str = "",
        *,
        cache: str | pathlib.Path | None = None,
        replay: Sequence[str | pathlib.Path] = (),
        api_key: str | None = None,
        key_over_http: bool = False,
        timeout: float = 60.0,
        tries: int = 5,
        takes: int = 3,
        backoff: float = 1.0,
        longest_wait: float = 60.0,
        max_tokens: int = 1400,
        temperature: float = 0.0,
        max_pixels: int = 1024 * 1024,
    ):
        """Create a client. Nothing is sent yet.

        Args:
          model: the model's name at the endpoint.
          base_url: such as "http://localhost:8000/v1"; "" answers from the cache only.
          cache: JSON-lines file of answers, read now and appended to; None: no file.
          replay: further caches to read, such as those of other processes.
          api_key: sent as a bearer token; None or "" sends none.
          key_over_http: send the key unencrypted to other machines too; by default only over https or to this machine.
          timeout: seconds per try, from the connection to the last byte of the answer.
          tries: requests per answer when the endpoint times out, is busy or is unreachable.
          takes: answers to sample before one that cannot be parsed counts as nonsense.
          backoff: seconds before the second try, doubled for each further try, with jitter. A longer Retry-After from
            the endpoint takes precedence.
          longest_wait: upper bound of a wait, in seconds.
          max_tokens: maximum length of an answer.
          temperature: sampling temperature. Later takes use at least 0.3, otherwise they would repeat the first.
          max_pixels: larger images are downscaled to this many pixels.

        Raises:
          InputError: an argument is empty or out of range, or the key would cross a network unencrypted.
        """
        if not model:
            raise InputError("model is empty; set it to the model's name at the endpoint")
        if min(tries, takes, max_tokens, max_pixels) < 1 or timeout <= 0:
            raise InputError("tries, takes, max_tokens, max_pixels and timeout must be positive")
        self.model, self.max_pixels, self.takes = model, max_pixels, takes
        self._options = dict(max_tokens=max_tokens, temperature=temperature)
        options = dict(key=api_key, key_over_http=key_over_http, timeout=timeout)
        self._server = HttpServer(base_url, **options) if base_url else None
        self._has_answered = False
        self._cache = _Cache(None if cache is None else pathlib.Path(cache), list(map(pathlib.Path, replay)))
        jitter = tenacity.wait_exponential_jitter(multiplier=backoff, max=longest_wait, jitter=backoff)
        self._retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(tries),
            wait=lambda state: min(max(jitter(state), state.outcome.exception().retry_after), longest_wait),
            retry=tenacity.retry_if_exception_type(_Again),
            reraise=True,
        )

    @classmethod
    def configured(cls, config: VlmConfig, folder: pathlib.Path, process: int, where: str) -> "Vlm":
        """Create a client with a cache file in `folder` for each process; without base_url it reads the caches only.

        `where` is the section of the configuration, for messages.

        Raises:
          InputError: the config has no model.
        """
        if not config.model:
            raise InputError(f"this step asks a vision-language model: set {where}.model and .base_url.")
        names = ("key_over_http", "timeout", "tries", "takes", "backoff", "max_tokens", "max_pixels")
        options = {name: getattr(config, name) for name in names}
        caches = dict(cache=folder / f"answers_{process}.jsonl", replay=sorted(folder.glob("answers_*.jsonl")))
        return cls(config.model, config.base_url, api_key=os.environ.get(config.key_env), **caches, **options)

    def ask(
        self,
        parts: Sequence[str | bytes | ImageLike | Reference],
        parse: Callable[[str], Answer] = str,
        *,
        take: int = 0,
        **options: float | int,
    ) -> Answer:
        """Return the parsed answer to a question, from the cache or the endpoint.

        Args:
          parts: the question in order: text, and images as arrays, PIL images or pathlib paths. Bytes of a PNG or JPEG
            file are sent unchanged.
          parse: converts the answer's text. A ValueError rejects the answer, and another one is sampled.
          take: index of an independent repetition, for protocols that average several.
          options: max_tokens and temperature for this question.

        Raises:
          VlmError: no answer could be obtained or parsed.
          InputError: the endpoint rejects the key, the address or the model at once, or an image cannot be read.
        """
        pieces = [
            part if isinstance(part, str | bytes) else _shrunk(Reference.of(part).pixels, self.max_pixels)
            for part in parts
        ]
        for number in range(take * self.takes, (take + 1) * self.takes):
            asked = self._options | options | {"seed": number}
            if number:
                asked["temperature"] = max(asked["temperature"], 0.3)
            answer = self._answer(pieces, asked)
            try:
                return parse(answer)
            except ValueError as error:
                last = error
        raise VlmError("nonsense", f"no usable answer in {self.takes} takes ({last}); the last: {answer[:200]!r}")

    def converse(self, turns: Sequence[Turn], **parameters: float | int) -> str:
        """Return the endpoint's answer to a conversation, word for word.

        No parameter is sent besides `parameters`, and no answer is cached: asking again draws another sample.

        Raises:
          VlmError: no answer could be obtained.
          InputError: the endpoint rejects the key, the address or the model at once.
        """
        return self._completed(dict(model=self.model, messages=[_message(turn) for turn in turns], **parameters))

    def close(self) -> None:
        """Do nothing: a connection ends with its request, and every answer is written at once."""

    def _answer(self, pieces: list[Any], options: dict[str, Any]) -> str:
        described = [piece if isinstance(piece, str) else _digest(piece) for piece in pieces]
        question = dict(model=self.model, parts=described, options=options)
        key = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
        if (known := self._cache.get(key)) is not None:
            return known
        content = [_text(piece) if isinstance(piece, str) else _image(piece) for piece in pieces]
        answer = self._completed(dict(model=self.model, messages=[dict(role="user", content=content)], **options))
        self._cache.add(key, question | {"answer": answer, "time": int(time.time())})
        return answer

    def _completed(self, request: dict[str, Any]) -> str:
        if self._server is None:
            raise VlmError("missing", "the answer is not in the cache, and there is no endpoint to ask")
        try:
            return self._retrying(self._send, request)
        except _Again as error:
            raise VlmError(error.kind, str(error)) from error

    def _send(self, message: dict[str, Any]) -> str:
        """Send one request; raise `_Again` if it may be retried."""
        try:
            found = self._server.post("chat/completions", message)
        except HttpError as error:
            raise _Again(error.kind, f"the endpoint gives no answer: {error}") from error
        if found.status in _BUSY:
            raise _Again("busy", f"the endpoint is busy or failing (status {found.status})", found.retry_after)
        # After the first answer it is a failure of one question: a long run goes on.
        if found.status in _MISTAKES and not self._has_answered:
            raise InputError(f"{self._server.address} returns status {found.status}: {_MISTAKES[found.status]}")
        if 300 <= found.status < 400:
            raise VlmError("refused", f"the endpoint redirects (status {found.status}), which is not followed")
        if found.status != 200:
            raise VlmError("refused", f"the endpoint rejects the question (status {found.status}: {_shown(found)})")
        try:
            answer = untrusted.json(found.text, dict, "the answer")["choices"][0]["message"]["content"]
        except (InputError, LookupError, TypeError) as error:
            raise _Again("nonsense", f"the endpoint returns no message ({error}): {_shown(found)}") from error
        if not isinstance(answer, str) or not answer.strip():
            raise _Again("nonsense", f"the endpoint returns an empty message: {_shown(found)}")
        self._has_answered = True
        return self._server.hide_key(answer)  # in the JSON it may have been escaped


class _Again(Exception):
    """A failed request that may be retried."""

    def __init__(self, kind: Kind, reason: str, retry_after: float = 0.0):
        super().__init__(reason)
        self.kind, self.retry_after = kind, retry_after


class _Stored(TypedDict):
    key: str
    answer: str


class _Cache:
    """Answers by the digest of their question, one JSON line each; an interrupted write loses at most the last line."""

    def __init__(self, path: pathlib.Path | None, others: Sequence[pathlib.Path]):
        self._path, self._known, self._lock, self._torn = path, {}, threading.Lock(), False
        for other in others:
            self._read(other)
        if path is not None:
            self._torn = self._read(path)

    def _read(self, path: pathlib.Path) -> bool:
        """Read the answers of a file. Return whether its last line is torn."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                return False
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(size - 1, 0))
                torn = file.read() not in (b"", b"\n")
        except OSError as error:
            raise InputError(
                f"cannot read the answer cache {path} ({error.strerror}); check its permissions"
            ) from error
        # A damaged line, such as an interrupted write, is skipped: its question is asked again.
        for _, record in untrusted.json_lines(path, _Stored, damaged=lambda error: None):
            self._known[record["key"]] = record["answer"]
        return torn

    def get(self, key: str) -> str | None:
        return self._known.get(key)

    def add(self, key: str, record: dict[str, Any]) -> None:
        line = json.dumps({"key": key} | record, ensure_ascii=False)
        with self._lock:
            self._known[key] = record["answer"]
            if self._path is None:
                return
            # A single write keeps lines of concurrent processes apart.
            # A question with half of a surrogate pair: its escape is valid JSON.
            data = ("\n" * self._torn + line + "\n").encode("utf-8", "backslashreplace")
            self._torn = False
            try:
                file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                try:
                    os.write(file, data)
                finally:
                    os.close(file)
            except OSError as error:
                raise InputError(f"cannot write the answer cache {self._path} ({error.strerror})") from error


def _shown(found: HttpAnswer) -> str:
    return repr(found.text[:200])


def _shrunk(pixels: np.ndarray, max_pixels: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    if height * width <= max_pixels:
        return pixels
    scale = (max_pixels / (height * width)) ** 0.5
    size = max(int(width * scale), 1), max(int(height * scale), 1)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def _digest(image: np.ndarray | bytes) -> dict[str, Any]:
    if isinstance(image, bytes):
        return {"file": hashlib.sha256(image).hexdigest()}
    return {"image": hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest(), "shape": list(image.shape)}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _image(image: np.ndarray | bytes, **options: str) -> dict[str, Any]:
    file = image if isinstance(image, bytes) else _encoded(image)
    kind = "png" if file.startswith(b"\x89PNG") else "jpeg"
    url = f"data:image/{kind};base64,{base64.b64encode(file).decode()}"
    return {"type": "image_url", "image_url": {"url": url} | options}


def _message(turn: Turn) -> dict[str, Any]:
    """Return a turn as the endpoint expects it; one text alone is sent as such."""
    if len(turn.parts) == 1 and isinstance(turn.parts[0], str):
        return {"role": turn.role, "content": turn.parts[0]}
    options = lambda part: {"detail": part.detail} if part.detail else {}
    content = [_text(part) if isinstance(part, str) else _image(part.file, **options(part)) for part in turn.parts]
    return {"role": turn.role, "content": content}


def _encoded(pixels: np.ndarray) -> bytes:
    small = pixels.shape[0] * pixels.shape[1] <= _LOSSLESS
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG" if small else "JPEG", **({} if small else {"quality": 95}))
    return buffer.getvalue()
