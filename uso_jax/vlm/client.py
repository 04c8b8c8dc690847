# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A vision-language model behind an OpenAI-compatible endpoint: images and words in, an answer or a failure out.

    vlm = Vlm("qwen2.5-vl-7b", "http://localhost:8000/v1", cache="answers.jsonl")
    score = vlm.ask(["Rate the likeness from 0 to 4.", image_a, image_b], parse=read_score)

Every answer is kept in the cache, a file of JSON lines, also those that `parse` cannot read; the same question is never
asked twice, so that a run is repeated from its cache alone, without an endpoint, failures of parsing included. What
cannot be had is a `VlmError`; nothing is ever made up in its place.
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
from typing import Any, Literal, TypeVar

import httpx
import numpy as np
import tenacity
from PIL import Image

from uso_jax.common.errors import InputError
from uso_jax.images.files import ImageLike, Reference

Answer = TypeVar("Answer")
Kind = Literal["timeout", "busy", "unreachable", "refused", "nonsense", "missing"]
_LOSSLESS = 256 * 256  # pixels: what is not larger is sent as PNG
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # worth another try
_MISTAKES = {401: "check the key", 403: "check the key", 404: "check the address and the model's name"}


class VlmError(Exception):
    """A question without a usable answer; `kind` says why.

    timeout, busy (429 and 5xx) and unreachable passed all tries; refused: the endpoint will not take this question;
    nonsense: it answers, but not what was asked for; missing: the cache does not have it, and there is no endpoint.
    """

    def __init__(self, kind: Kind, reason: str):
        super().__init__(reason)
        self.kind = kind


class Vlm:
    """Ask one model; may be used from several threads."""

    def __init__(
        self,
        model: str,
        base_url: str = "",
        *,
        cache: str | pathlib.Path | None = None,
        replay: Sequence[str | pathlib.Path] = (),
        api_key: str | None = None,
        timeout: float = 60.0,
        tries: int = 5,
        takes: int = 3,
        backoff: float = 1.0,
        longest_wait: float = 60.0,
        max_tokens: int = 1400,
        temperature: float = 0.0,
        max_pixels: int = 1024 * 1024,
    ):
        """Remember how to ask; nothing is sent yet.

        Args:
          model: its name at the endpoint.
          base_url: such as "http://localhost:8000/v1"; "" answers from the cache alone.
          cache: file of answers, read now and added to; None keeps none.
          replay: further files of answers, read now: those of other processes.
          api_key: of the endpoint; None or "" sends none.
          timeout: seconds for one try.
          tries: of one question, where the endpoint is slow, busy or away.
          takes: answers to hear before one that cannot be parsed counts as nonsense.
          backoff: seconds before the second try, doubled for each further one up to `longest_wait`, and jittered; a
            Retry-After of the endpoint counts where it is longer.
          longest_wait: seconds.
          max_tokens: of an answer.
          temperature: of sampling. Second and later takes ask with at least 0.3, or they would be the same again.
          max_pixels: larger images are shrunk to this.
        """
        if not model:
            raise InputError("a vision-language model needs its name at the endpoint")
        if base_url and not base_url.startswith(("http://", "https://")):
            raise InputError(f"the endpoint {base_url!r} must begin with http:// or https://")
        if min(tries, takes, max_tokens, max_pixels) < 1 or timeout <= 0:
            raise InputError("tries, takes, max_tokens, max_pixels and timeout of a vision-language model are positive")
        self.model, self.max_pixels, self.takes = model, max_pixels, takes
        self._options = dict(max_tokens=max_tokens, temperature=temperature)
        self._cache = _Cache(None if cache is None else pathlib.Path(cache), list(map(pathlib.Path, replay)))
        self._client = None
        if base_url:
            headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
            self._client = httpx.Client(base_url=base_url.rstrip("/") + "/", timeout=timeout, headers=headers)
        jitter = tenacity.wait_exponential_jitter(multiplier=backoff, max=longest_wait, jitter=backoff)
        self._retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(tries),
            wait=lambda state: min(max(jitter(state), state.outcome.exception().retry_after), longest_wait),
            retry=tenacity.retry_if_exception_type(_Again),
            reraise=True,
        )

    def ask(
        self,
        parts: Sequence[str | bytes | ImageLike | Reference],
        parse: Callable[[str], Answer] = str,
        *,
        take: int = 0,
        **options: float | int,
    ) -> Answer:
        """Give what `parse` makes of the answer; a ValueError of it means nonsense, and another answer is heard.

        Args:
          parts: of the question, in order: text, and images as arrays, PIL images or pathlib paths. Bytes of a PNG
            or JPEG file are sent as they are.
          parse: from the answer's text.
          take: number of an independent repetition, for protocols that average several.
          options: max_tokens and temperature of this question, where they differ.

        Raises:
          VlmError: there is no answer that `parse` can read.
          InputError: the endpoint does not know the key, the address or the model, or an image cannot be read.
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
        raise VlmError("nonsense", f"no usable answer in {self.takes} ({last}); the last: {answer[:200]!r}")

    def close(self) -> None:
        """Close connections; the cache is complete after every answer."""
        if self._client is not None:
            self._client.close()

    def _answer(self, pieces: list[Any], options: dict[str, Any]) -> str:
        described = [piece if isinstance(piece, str) else _digest(piece) for piece in pieces]
        question = dict(model=self.model, parts=described, options=options)
        key = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
        if (known := self._cache.get(key)) is not None:
            return known
        if self._client is None:
            raise VlmError("missing", "the cache has no answer to this question, and there is no endpoint to ask")
        content = [_text(piece) if isinstance(piece, str) else _image(piece) for piece in pieces]
        message = dict(model=self.model, messages=[dict(role="user", content=content)], **options)
        try:
            answer = self._retrying(self._send, message)
        except _Again as error:
            raise VlmError(error.kind, str(error)) from error
        self._cache.add(key, question | {"answer": answer, "time": int(time.time())})
        return answer

    def _send(self, message: dict[str, Any]) -> str:
        """Try once."""
        try:
            response = self._client.post("chat/completions", json=message)
        except httpx.TimeoutException as error:
            raise _Again("timeout", f"no answer in time ({type(error).__name__})") from error
        except httpx.TransportError as error:
            raise _Again("unreachable", f"the endpoint cannot be reached ({error})") from error
        status = response.status_code
        if status in _BUSY:
            raise _Again("busy", f"the endpoint is busy or broken (status {status})", _retry_after(response))
        if status in _MISTAKES:
            raise InputError(f"{self._client.base_url} answers with status {status}: {_MISTAKES[status]}")
        if status != 200:
            raise VlmError("refused", f"the endpoint refuses the question (status {status}: {response.text[:200]!r})")
        try:
            answer = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise _Again("nonsense", f"the endpoint answers without a message: {response.text[:200]!r}") from error
        if not isinstance(answer, str) or not answer.strip():
            raise _Again("nonsense", f"the endpoint answers with an empty message: {response.text[:200]!r}")
        return answer


class _Again(Exception):
    """A try that failed and may be repeated."""

    def __init__(self, kind: Kind, reason: str, retry_after: float = 0.0):
        super().__init__(reason)
        self.kind, self.retry_after = kind, retry_after


class _Cache:
    """Answers by the digest of their question; a line a question, added whole, so a kill costs at most the last one."""

    def __init__(self, path: pathlib.Path | None, others: Sequence[pathlib.Path]):
        self._path, self._known, self._lock, self._torn = path, {}, threading.Lock(), False
        for other in others:
            self._read(other)
        if path is not None:
            data = self._read(path)
            self._torn = bool(data) and not data.endswith(b"\n")

    def _read(self, path: pathlib.Path) -> bytes:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            data = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise InputError(f"the cache of answers {path} cannot be read ({error.strerror})") from error
        for line in data.splitlines():
            try:
                record = json.loads(line)
                self._known[record["key"]] = str(record["answer"])
            except (ValueError, LookupError, TypeError):
                continue  # cut off by a kill: that question is asked again
        return data

    def get(self, key: str) -> str | None:
        return self._known.get(key)

    def add(self, key: str, record: dict[str, Any]) -> None:
        line = json.dumps({"key": key} | record, ensure_ascii=False)
        with self._lock:
            self._known[key] = record["answer"]
            if self._path is None:
                return
            # One write, so that lines of several processes do not mix.
            data = ("\n" * self._torn + line + "\n").encode()
            self._torn = False
            try:
                file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                try:
                    os.write(file, data)
                finally:
                    os.close(file)
            except OSError as error:
                raise InputError(f"the cache of answers {self._path} cannot be written ({error.strerror})") from error


def _retry_after(response: httpx.Response) -> float:
    try:
        return max(float(response.headers.get("Retry-After", 0)), 0.0)
    except ValueError:
        return 0.0  # a date, which is rare: the back-off serves


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


def _image(image: np.ndarray | bytes) -> dict[str, Any]:
    file = image if isinstance(image, bytes) else _encoded(image)
    kind = "jpeg" if file.startswith(b"\xff\xd8") else "png"
    url = f"data:image/{kind};base64,{base64.b64encode(file).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _encoded(pixels: np.ndarray) -> bytes:
    small = pixels.shape[0] * pixels.shape[1] <= _LOSSLESS
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG" if small else "JPEG", **({} if small else {"quality": 95}))
    return buffer.getvalue()
