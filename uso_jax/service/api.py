# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The routes of the service.

    POST /v1/images/generations   JSON, as OpenAI's
    POST /v1/images/edits         a form with files, as OpenAI's
    GET  /v1/models, /v1/adapters, /v1/styles
    GET  /healthz, /metrics

Errors have OpenAI's form. A client that hangs up cancels its images.
"""

import asyncio
import contextlib
import dataclasses
import functools
import hmac
import json
import logging
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import fastapi
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.inference.options import GenerationOptions
from uso_jax.inference.style_library import StyleLibrary
from uso_jax.service.adapters import AdapterFolder
from uso_jax.service.call import Call, check_size, encode, read_call
from uso_jax.service.forms import form_values
from uso_jax.service.journal import Journal
from uso_jax.service.limits import Limits
from uso_jax.service.metrics import Metrics
from uso_jax.service.work import Busy, Job, Late, Worker
from uso_jax.web.hosts import Hosts
from uso_jax.web.requests import Refused, read_body, replayed

_log = logging.getLogger("uso_jax")
OPEN = ("/healthz",)  # routes that need no key
_MEMBERS = 1 << 16  # values of a JSON body; each takes memory far beyond its bytes
_SENTENCE = 1000  # characters of a message, which may repeat a value
_SILENCE = 15.0  # seconds without a word in a stream
_EVENTS = 0.1  # seconds between looks at a running job's progress


class Api:
    """The application; `app` is its ASGI side.

    Args:
      worker: draws the images.
      limits: of requests.
      hosts: names of this server.
      keys: of clients; none: everyone may call.
      adapters: adapters by name.
      styles: saved styles.
      journal: the log.
      metrics: the counters.
    """

    def __init__(
        self,
        worker: Worker,
        limits: Limits,
        *,
        hosts: Hosts,
        keys: Sequence[str],
        adapters: AdapterFolder,
        styles: StyleLibrary,
        journal: Journal,
        metrics: Metrics,
    ):
        self._worker, self._limits, self._hosts, self._keys = worker, limits, hosts, tuple(keys)
        self._adapters, self._styles, self._journal, self._metrics = adapters, styles, journal, metrics
        metrics.watch(lambda: worker.num_waiting)
        self.app = fastapi.FastAPI(title="uso_jax", docs_url=None, redoc_url=None, openapi_url=None)
        self.app.add_api_route("/v1/images/generations", self.generations, methods=["POST"])
        self.app.add_api_route("/v1/images/edits", self.edits, methods=["POST"])
        self.app.add_api_route("/v1/models", self.models)
        self.app.add_api_route("/v1/adapters", lambda: {"data": adapters.names()})
        self.app.add_api_route("/v1/styles", lambda: {"data": styles.names()})
        self.app.add_api_route("/healthz", self.health)
        self.app.add_api_route("/metrics", lambda: Response(metrics.text(), media_type="text/plain; version=0.0.4"))
        self.app.add_exception_handler(HTTPException, lambda _, error: _error(error.status_code, str(error.detail)))

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Answer a request after the checks that hold for all routes."""
        if scope["type"] != "http":
            await (self.app(scope, receive, send) if scope["type"] == "lifespan" else send({"type": "websocket.close"}))
            return
        started, status, answered = time.monotonic(), 500, False

        async def counted(message: dict) -> None:
            nonlocal status, answered
            status, answered = message.get("status", status), True
            await send(message)

        try:
            self._check(scope)
            if scope["method"] == "POST":
                limit, seconds = self._limits.body, self._limits.body_seconds
                receive = replayed(await read_body(receive, limit, seconds, "send smaller images"), receive)
            await self.app(scope, receive, counted)
        except Refused as refused:
            await _error(refused.status, str(refused))(scope, receive, counted)
        except Exception as error:
            _log.exception("a request failed")
            if answered:
                raise
            await _error(*self._failure(error))(scope, receive, counted)
        finally:
            route = scope["path"] if scope["path"] in {route.path for route in self.app.routes} else "other"
            self._metrics.answered(route, status)
            if route not in ("/healthz", "/metrics"):
                took = round(time.monotonic() - started, 3)
                self._journal.write("request", method=scope["method"], route=route, status=status, seconds=took)

    def _check(self, scope: dict) -> None:
        self._hosts.check(scope)
        if not self._keys or scope["path"] in OPEN:
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, key = given.partition(b" ")
        # Every key is compared, so that the time tells nothing of them.
        matches = [hmac.compare_digest(key.strip(), known.encode()) for known in self._keys]
        if kind.lower() != b"bearer" or not any(matches):
            raise Refused(401, "this service needs a key: send the header Authorization: Bearer KEY")

    # ------------------------------------------------------------------------------------------------ routes

    async def generations(self, request: fastapi.Request) -> Response:
        """Draw images from JSON."""
        return await self._answer(request, "image_generation", _read_json)

    async def edits(self, request: fastapi.Request) -> Response:
        """Draw images from a form: with a mask or a strength its image is edited, otherwise it is the content image."""
        read = functools.partial(_read_form, max_files=3 + 2 * self._limits.references)
        return await self._answer(request, "image_edit", read)

    def models(self) -> dict[str, Any]:
        """Name the weights, as OpenAI lists models, with their facts."""
        about = self._worker.pipe.about
        model = {"id": about.name, "object": "model", "created": 0, "owned_by": "uso_jax", "uso": about.json()}
        return {"object": "list", "data": [model]}

    def health(self) -> Response:
        """Say whether images are drawn."""
        if self._worker.is_open:
            return JSONResponse({"status": "ok", "waiting": self._worker.num_waiting})
        return JSONResponse({"status": "stopping"}, 503)

    # ------------------------------------------------------------------------------------------------ images

    async def _answer(self, request: fastapi.Request, kind: str, read: "_Read") -> Response:
        try:
            self._worker.check_room(1)  # before anything is decoded
            call, job, events = await self._begun(request, read)
            self._worker.add(job)
        except InputError as error:
            return _error(400, str(error))
        except Busy as busy:
            return _error(429 if self._worker.is_open else 503, str(busy), {"retry-after": "5"})
        if call.stream:
            return StreamingResponse(self._stream(request, kind, call, job, events), media_type="text/event-stream")
        try:
            await self._wait(request, job)
            return JSONResponse(await asyncio.to_thread(_result, call, job))
        except Exception as error:
            # A client that asked again would only wait again.
            return _error(*self._failure(error), {"x-should-retry": "false"})

    async def _begun(self, request: fastapi.Request, read: "_Read") -> tuple[Call, Job, "_Events"]:
        """Read a request; its body is freed when this returns, before its images are waited for."""
        values = await read(request)
        request._body, request._form = b"", None
        return await asyncio.to_thread(self._job, values)

    def _job(self, values: Callable[[], dict[str, Any]]) -> tuple[Call, Job, "_Events"]:
        """Read a call and put its images together; this reads images, so it is not for the event loop."""
        pipe = self._worker.pipe
        call = read_call(values(), self._limits, self._styles.read, pipe.about.content_ref)
        for name, _ in call.adapters:
            self._adapters.find(name)
        references = dict(contents=list(call.contents), styles=list(call.styles), **call.images)
        first = pipe.request(call.prompt, **references, options=GenerationOptions(**call.options))
        options = first.options
        check_size(options.width, options.height, options.upscale, self._limits)
        seeds = (dataclasses.replace(options, seed=options.seed + number) for number in range(call.count))
        requests = [dataclasses.replace(first, options=one) for one in seeds]
        events = _Events()
        job = Job(requests, call.adapters, time.monotonic() + self._limits.seconds, events.put)
        self._journal.write("call", prompt=call.prompt, images=call.count, size=f"{options.width}x{options.height}")
        return call, job, events

    async def _wait(self, request: fastapi.Request, job: Job) -> None:
        """Wait for a job's images, or until its client hangs up or its time is over."""
        drawn = asyncio.wrap_future(job.images)
        gone = asyncio.create_task(_disconnected(request))
        try:
            rest = job.deadline - time.monotonic()
            await asyncio.wait((drawn, gone), timeout=rest, return_when=asyncio.FIRST_COMPLETED)
            if not drawn.done():
                job.fail(Late("the client hung up" if gone.done() else "the request took too long"))
            await asyncio.shield(drawn)
        finally:
            gone.cancel()

    async def _stream(
        self, request: fastapi.Request, kind: str, call: Call, job: Job, events: "_Events"
    ) -> AsyncIterator[str]:
        """Yield events: progress, then each image, in the form of OpenAI's stream."""
        waiting, said = asyncio.create_task(self._wait(request, job)), time.monotonic()
        try:
            while not waiting.done():
                await asyncio.wait((waiting,), timeout=_EVENTS)
                if time.monotonic() - said > _SILENCE:  # proxies end a stream that says nothing
                    said = time.monotonic()
                    yield ": waiting\n\n"
                if (news := events.take()) is not None:
                    said = time.monotonic()
                    phase, step, total = news
                    yield _event(f"{kind}.progress", phase=phase, step=step, total=total)
            await waiting
            for number, one in enumerate((await asyncio.to_thread(_result, call, job))["data"]):
                size = one["record"]["request"]
                facts = dict(output_format=call.format, size=f"{size['width']}x{size['height']}")
                facts |= dict(quality="auto", background="opaque", created_at=int(time.time()))
                yield _event(f"{kind}.completed", index=number, **facts, **one)
        except Exception as error:
            yield _event("error", **_described(*self._failure(error)))
        finally:
            job.cancel()
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await waiting

    def _failure(self, error: Exception) -> tuple[int, str]:
        """Return the status and the sentence of a job that failed."""
        if isinstance(error, InputError):
            return 400, str(error)
        if isinstance(error, Late):
            return 408, f"{error}; ask for fewer images or steps, or later"
        where = traceback.format_exception(error)[-20:]
        self._journal.write("failure", error=type(error).__name__, message=str(error)[:500], where=where)
        return 500, f"drawing failed ({type(error).__name__}); the server's log says more"


_Read = Callable[[fastapi.Request], Awaitable[Callable[[], dict[str, Any]]]]
"""Receives a body, and returns what makes its fields; the latter takes time, and is not for the event loop."""


async def _read_json(request: fastapi.Request) -> Callable[[], dict[str, Any]]:
    body = await request.body()
    if sum(map(body.count, (b"{", b"[", b","))) > _MEMBERS:
        raise InputError(f"the request has more than {_MEMBERS} values; send a JSON object with fewer")
    return functools.partial(untrusted.json, body, dict[str, Any], "the request", remedy="send a JSON object")


async def _read_form(request: fastapi.Request, max_files: int) -> Callable[[], dict[str, Any]]:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise InputError("the request is not a form with files: send multipart/form-data")
    fields: list[tuple[str, str | bytes]] = []
    try:
        async with request.form(max_files=max_files, max_fields=64) as form:
            for name, value in form.multi_items():
                fields.append((name, await value.read() if isinstance(value, UploadFile) else value))
    except (HTTPException, MultiPartException) as error:
        raise InputError(f"the request is not a form with files: {getattr(error, 'detail', error)}") from None
    return functools.partial(form_values, fields)


class _Events:
    """The latest progress of a job, handed from the drawing thread to the event loop."""

    def __init__(self):
        self._latest: tuple[str, int, int] | None = None

    def put(self, phase: str, step: int, total: int) -> None:
        self._latest = phase, step, total

    def take(self) -> tuple[str, int, int] | None:
        latest, self._latest = self._latest, None
        return latest


async def _disconnected(request: fastapi.Request) -> None:
    """Return when the client has hung up; its body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _result(call: Call, job: Job) -> dict[str, Any]:
    """Return OpenAI's answer, with the seed and the record of each image."""
    data = [
        {"b64_json": encode(made.image, call), "seed": made.record["request"]["seed"], "record": made.record}
        for made in job.images.result()
    ]
    return {"created": int(time.time()), "output_format": call.format, "data": data}


def _event(kind: str, **values: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **values})}\n\n"


def _described(status: int, sentence: str) -> dict[str, Any]:
    """Return an error in OpenAI's form."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": sentence[:_SENTENCE], "type": kind, "param": None, "code": None}}


def _error(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(_described(status, sentence), status, headers)
