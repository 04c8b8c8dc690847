# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What stands between the network and gradio: only requests of the page's own kind, in size and in time, pass.

Gradio trusts every host name, so a web site that points its name at this machine could use a server that listens on
localhost only, and it has many routes that the page does not need, one of which fetches any address. `Guard` is an ASGI
application around gradio's: host and origin must be this server's, routes are on a list, bodies have limits, and what
is no well-formed request ends here, with a sentence.
"""

import asyncio
import json
import logging
import os
import pathlib
import re
import urllib.parse
from collections.abc import Callable, Collection
from typing import Any, TypedDict

from uso_jax.app.quota import MAX_BODY, MAX_FILE, MEGABYTE, UploadQuota
from uso_jax.common import untrusted
from uso_jax.common.errors import InputError
from uso_jax.web.hosts import Hosts
from uso_jax.web.requests import Refused, read_body, replayed

MAX_MESSAGE = 1 << 16  # bytes of a body that is not an upload
MESSAGE_TIME, UPLOAD_TIME = 30.0, 300.0  # seconds in which a body must arrive
_PREFIX = "/gradio_api"
_READ = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(assets|static|svelte)/.+"
    rf"|{_PREFIX}/(info|startup-events|theme\.css|queue/data|upload_progress|heartbeat/[\w-]{{1,64}}|file=.+)",
    re.DOTALL,
)
_WRITTEN = tuple(f"{_PREFIX}/{name}" for name in ("queue/join", "upload", "cancel", "reset"))
_SESSION = re.compile(r"[\w-]{1,64}", re.ASCII)
_log = logging.getLogger("uso_jax")


class _Join(TypedDict):
    data: list[Any]
    fn_index: int
    session_hash: str


class Guard:
    """An ASGI application that passes proper requests on to another one."""

    def __init__(
        self,
        app: Callable,
        hosts: Hosts,
        quota: UploadQuota,
        *,
        folder: pathlib.Path,
        events: Collection[int],
        leave: Callable[[str], None],
    ):
        """Wrap an application.

        Args:
          app: gradio's application.
          hosts: the names of this server.
          quota: counts uploads.
          folder: the only folder from which files are sent.
          events: numbers of the page's events.
          leave: called with the name of a session that cancelled its request or closed its connection.
        """
        self._app, self._hosts, self._quota = app, hosts, quota
        self._folder, self._events, self._leave = folder.resolve(), events, leave

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close"})

    async def _answer(self, scope: dict, receive: Callable, send: Callable) -> None:
        reply = _Reply(send, is_plain=scope["path"].endswith("/upload"))
        try:
            self._check(scope)
            if scope["method"] != "POST":
                await self._pass_on(scope, receive, reply)
            elif scope["path"] == f"{_PREFIX}/upload":
                await self._upload(scope, receive, reply)
            else:
                body = await read_body(receive, MAX_MESSAGE, MESSAGE_TIME, "shorten the prompt")
                self._check_message(scope["path"], body)
                await self._pass_on(scope, replayed(body, receive), reply)
        except Refused as refused:
            await reply.refuse(refused)

    async def _pass_on(self, scope: dict, receive: Callable, reply: "_Reply") -> None:
        session = _query(scope).get("session_hash", "") if scope["path"] == f"{_PREFIX}/queue/data" else ""
        try:
            await self._app(scope, receive, reply.send)
        except Exception as error:
            if not reply.is_started:
                raise
            # Gradio raises where the page's connection ends. Other errors have a traceback in the log.
            _log.warning("%s ended with %r", scope["path"][:80], error, exc_info=reply.status >= 500)
        finally:
            if session:
                self._leave(session)

    def _check(self, scope: dict) -> None:
        """Raise Refused if the host, origin or route is not this page's."""
        self._hosts.check(scope)
        path = scope["path"]
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise Refused(405, "this server answers GET, HEAD and POST")
        is_known = path in _WRITTEN if scope["method"] == "POST" else _READ.fullmatch(path)
        if not is_known or "\0" in path or len(path) > 1024:
            is_address = re.search(r"(file|proxy)[=/]\s*\w+:", path)
            raise Refused(403, "addresses are not fetched") if is_address else Refused(404, "there is no such page")
        if path.startswith(f"{_PREFIX}/file="):
            self._check_file(path.removeprefix(f"{_PREFIX}/file="))

    def _check_file(self, name: str) -> None:
        if re.match(r"\s*([\w+.-]*:)?//|\s*\w{2,}:", name):
            raise Refused(403, "addresses are not fetched")
        try:
            path = pathlib.Path(os.path.realpath(name))
            is_file = path.is_file()
        except (OSError, ValueError):
            raise Refused(404, "there is no such file") from None
        if not path.is_relative_to(self._folder):
            raise Refused(403, "this file is not part of the page")
        if not is_file:
            raise Refused(404, "there is no such file; uploads are deleted after some hours")

    def _check_message(self, path: str, body: bytes) -> None:
        """Raise Refused if a body is no message that the page would send."""
        try:
            if path.endswith("/join"):
                message = untrusted.json(body, _Join, "the request", remedy="reload the page", nan=True)
                if message["fn_index"] not in self._events:
                    raise InputError(f"the page has no event {message['fn_index']}; reload the page")
                session = message["session_hash"]
            else:
                message = untrusted.json(body, dict[str, Any], "the request", remedy="reload the page")
                session = message.get("session_hash", "-")
            if not isinstance(session, str) or not _SESSION.fullmatch(session):
                raise InputError("the session's name is not one of this server's; reload the page")
        except InputError as error:
            raise Refused(400, str(error)) from None
        if path.endswith("/cancel"):
            self._leave(session)

    async def _upload(self, scope: dict, receive: Callable, reply: "_Reply") -> None:
        kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
        if not re.match(rb"multipart/form-data\s*;.*boundary=\"?[^\s\";]", kind):
            raise Refused(400, "an upload must be a form with a file")
        client = (scope.get("client") or ("", 0))[0]
        received, end = 0, asyncio.get_running_loop().time() + UPLOAD_TIME
        refused: Refused | None = None

        async def counted() -> dict:
            nonlocal received, refused
            message: dict = {"type": "http.disconnect"}
            try:
                if not reply.is_muted:
                    async with asyncio.timeout_at(end):
                        message = await receive()
                    received += (size := len(message.get("body", b"")))
                    if received > MAX_BODY:
                        raise Refused(413, f"a file may have at most {MAX_FILE // MEGABYTE} MB; shrink the image")
                    self._quota.take(client, size)
            except Refused as one:
                message, refused = {"type": "http.disconnect"}, one
            except TimeoutError:
                refused = Refused(408, f"the upload took more than {UPLOAD_TIME:g} seconds; try again")
            reply.is_muted |= message["type"] == "http.disconnect"
            return message

        with self._quota.upload(client):
            try:
                await self._pass_on(scope, counted, reply)
            except Exception:
                if not reply.is_muted:  # otherwise gradio says that the upload broke off
                    raise
        if refused:
            raise refused


class _Reply:
    """The answer to a request.

    Attributes:
      is_started: whether its first part was sent.
      is_muted: whether what the application sends is left out.
      status: HTTP status of the application's answer.
    """

    def __init__(self, send: Callable, is_plain: bool):
        self._send, self._is_plain = send, is_plain
        self.is_started, self.is_muted, self.status = False, False, 0

    async def send(self, message: dict) -> None:
        """Send a part of the application's answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        if self.status == 503:  # gradio's answer when its queue is full
            await self.refuse(Refused(429, "many requests are waiting; try again in a minute"))
        elif not self.is_muted:
            self.is_started = True
            await self._send(message)

    async def refuse(self, refused: Refused) -> None:
        """Answer with a sentence, in the form that the page shows: of uploads as text, of all else as JSON."""
        if self.is_started:
            return
        self.is_started = True
        body = (str(refused) if self._is_plain else json.dumps({"detail": str(refused)})).encode()
        kind = b"text/plain; charset=utf-8" if self._is_plain else b"application/json"
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await self._send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _query(scope: dict) -> dict[str, str]:
    return dict(urllib.parse.parse_qsl(scope["query_string"].decode("latin-1"), max_num_fields=64))
