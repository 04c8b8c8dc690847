# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Requests to HTTP servers that are not trusted.

A request has a deadline for all of it, from the connection to the last byte: the timeouts of HTTP libraries count from
one read to the next, so a server that sends a byte a second would never reach them. An answer has a limit of bytes that
counts what is unpacked. Redirects are not followed, so a key goes to no other server. A key is in no message, and
`HttpAnswer.text` does not repeat it.
"""

import asyncio
import concurrent.futures
import functools
import ipaddress
import json
import math
import ssl
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from uso_jax.common.errors import InputError

MAX_ANSWER = 4 << 20  # bytes, unpacked; the longest answers of language models have some 100 kB
_SECRET = 8  # characters of the shortest key that is hidden; shorter ones, such as "none", are placeholders
_TICK = 0.5  # seconds
_PACKED = ("gzip", "x-gzip", "deflate")


class HttpError(Exception):
    """A request has no answer that can be used; the message names neither the key nor the address.

    timeout: the deadline passed. unreachable: no connection, or one that broke. nonsense: the answer is too large or
    damaged.
    """

    def __init__(self, kind: Literal["timeout", "unreachable", "nonsense"], reason: str):
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class HttpAnswer:
    """An answer of any status.

    Attributes:
      status: HTTP status.
      text: the body, without the key.
      retry_after: seconds that the server asks to wait, 0 without a request.
    """

    status: int
    text: str
    retry_after: float = 0.0


class HttpServer:
    """A server that is asked in JSON. Thread-safe.

    Attributes:
      address: as messages show it, without the query.
    """

    def __init__(
        self,
        address: str,
        *,
        key: str | None = None,
        key_over_http: bool = False,
        timeout: float = 60.0,
        max_bytes: int = MAX_ANSWER,
    ):
        """Check the address and the key. Nothing is sent yet.

        Args:
          address: "http://..." or "https://...".
          key: sent as a bearer token; None or "" sends none.
          key_over_http: send the key unencrypted to other machines too.
          timeout: seconds for a request and its whole answer.
          max_bytes: limit of the unpacked answer.

        Raises:
          InputError: the address or the key cannot be used, or the key would cross a network unencrypted.
        """
        self._url = _read_address(address)
        self.address = str(self._url.copy_with(query=None, fragment=None))
        self._key = _read_key(key)
        self._is_local = _is_this_machine(self._url.host)
        if self._key and not (self._url.scheme == "https" or self._is_local or key_over_http):
            raise InputError(
                f"the key would be sent unencrypted to {self.address}: use an https:// address, unset the key, or allow"
                " it with key_over_http"
            )
        self.timeout, self.max_bytes = timeout, max_bytes
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            self._headers["Authorization"] = f"Bearer {self._key}"
        self._loop = _background_loop()

    def post(self, path: str, message: Mapping[str, Any], tick: Callable[[], Any] | None = None) -> HttpAnswer:
        """Send a JSON message to a path below the address. Return the answer, of any status.

        Args:
          path: below the address.
          message: the body.
          tick: called twice a second while the answer is awaited; what it raises ends the wait and the connection.

        Raises:
          HttpError: there is no answer, or none that can be used.
        """
        return self._wait("POST", path, json.dumps(message).encode(), tick)

    def get(self, path: str) -> HttpAnswer:
        """Return the answer of a path below the address, of any status.

        Raises:
          HttpError: there is no answer, or none that can be used.
        """
        return self._wait("GET", path, None, None)

    def _wait(self, method: str, path: str, body: bytes | None, tick: Callable[[], Any] | None) -> HttpAnswer:
        url = self._url.copy_with(path=f"{self._url.path.rstrip('/')}/{path}")
        future = asyncio.run_coroutine_threadsafe(self._exchange(method, url, body), self._loop)
        try:
            while tick is not None and not concurrent.futures.wait([future], _TICK).done:
                tick()
            return future.result()
        finally:
            future.cancel()  # where the wait was interrupted

    def hide_key(self, text: str) -> str:
        """Replace the key in a text."""
        return text.replace(self._key, "[key]") if len(self._key) >= _SECRET else text

    async def _exchange(self, method: str, url: httpx.URL, body: bytes | None) -> HttpAnswer:
        # A client a request: it keeps no cookies, and no idle connection that may break. No proxy stands between this
        # machine and itself.
        client = httpx.AsyncClient(timeout=None, verify=_certificates(), trust_env=not self._is_local)
        try:
            async with (
                asyncio.timeout(self.timeout),
                client,
                client.stream(method, url, content=body, headers=self._headers) as response,
            ):
                data = await self._read(response)
        except TimeoutError:
            raise HttpError("timeout", f"no answer in time ({self.timeout:g} s)") from None
        except zlib.error as error:
            raise HttpError("nonsense", f"the answer is damaged ({error})") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
            # The cause is left out: httpx's requests hold the key.
            raise HttpError("unreachable", self.hide_key(f"it cannot be reached ({error})")) from None
        text = self.hide_key(data.decode("utf-8-sig", "replace"))
        return HttpAnswer(response.status_code, text, _seconds(response.headers.get("Retry-After", "")))

    async def _read(self, response: httpx.Response) -> bytes:
        """Read and unpack a body within the limit, of memory too."""
        packing = response.headers.get("Content-Encoding", "identity").strip().lower()
        if packing not in ("identity", "", *_PACKED):
            raise HttpError("nonsense", f"the answer is packed as {packing[:40]!r}, which was not asked for")
        unpack = zlib.decompressobj(zlib.MAX_WBITS | 32) if packing in _PACKED else None
        data, received = bytearray(), 0
        async for piece in response.aiter_raw():
            received += len(piece)
            data += unpack.decompress(piece, self.max_bytes + 1 - len(data)) if unpack else piece
            if max(received, len(data)) > self.max_bytes:
                raise HttpError("nonsense", f"the answer is larger than {self.max_bytes} bytes")
        if unpack and not unpack.eof:
            raise HttpError("nonsense", "the answer is damaged (its packed data ends early)")
        return bytes(data)


def _read_address(address: str) -> httpx.URL:
    if not address.startswith(("http://", "https://")):
        raise InputError(f"endpoint {address!r} must begin with http:// or https://")
    try:
        url = httpx.URL(address)
    except (httpx.InvalidURL, ValueError) as error:
        raise InputError(f"endpoint {address!r} is not an address ({error})") from None
    if url.userinfo:
        raise InputError(f"the endpoint at {url.host!r} must not contain a user name or password; use a key instead")
    if not url.host or not 0 < (url.port or 1) < 1 << 16:
        raise InputError(f"endpoint {address!r} has no host, or a port above 65535")
    return url


def _read_key(key: str | None) -> str:
    key = (key or "").strip()  # files of keys end with a line break
    if not all("!" <= character <= "~" for character in key):
        raise InputError("the key contains a space or a character outside ASCII; copy it again")
    return key


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _seconds(text: str) -> float:
    """Return the seconds of a Retry-After header; 0 for a date, which is rare."""
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return seconds if 0 <= seconds < math.inf else 0.0


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Return the authorities that are trusted, which are slow to load."""
    return httpx.create_ssl_context()


@functools.cache
def _background_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of all requests, in a thread that ends with the program.

    Only an event loop can end a request at its deadline in every phase, and notebooks run another one in theirs.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="http", daemon=True).start()
    return loop
