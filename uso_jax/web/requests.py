# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Bodies of requests, within limits of size and time."""

import asyncio
from collections.abc import Callable


class Refused(Exception):
    """A request that is not carried out; the message is for the user."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


async def read_body(receive: Callable, limit: int, seconds: float, remedy: str) -> bytes:
    """Return a body.

    Args:
      receive: as ASGI has it.
      limit: the most bytes.
      seconds: in which the body must arrive.
      remedy: what to do about a larger one.

    Raises:
      Refused: it is too large, comes too slowly, or does not come to its end.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > limit:
                    size = f"{limit >> 20} MB" if limit >> 20 else f"{limit >> 10} kB"
                    raise Refused(413, f"the request has more than {size}; {remedy}")
                if message["type"] == "http.disconnect":
                    raise Refused(400, "the request is incomplete; send it again")
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise Refused(408, f"the request took more than {seconds:g} seconds; send it again") from None


def replayed(body: bytes, receive: Callable, size: int = 1 << 16) -> Callable:
    """Return a `receive` with a body that was read already, in pieces, so that other requests run between them."""
    rest = memoryview(body)

    async def read() -> dict:
        nonlocal rest
        if rest is None:
            return await receive()
        await asyncio.sleep(0)
        piece, after = rest[:size], rest[size:]
        rest = after if len(after) else None
        return {"type": "http.request", "body": bytes(piece), "more_body": rest is not None}

    return read
