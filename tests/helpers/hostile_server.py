# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A local TCP server that answers HTTP requests with whatever bytes a script sends."""

import contextlib
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def serve(reply: Callable[[socket.socket], None], heard: list[bytes] | None = None) -> Iterator[str]:
    """Run a server on a free port of this machine; yield its address. `heard` collects what clients send."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.settimeout(5)
            with contextlib.suppress(OSError):
                received = b""
                while b"\r\n\r\n" not in received or not _is_whole(received):
                    received += self.request.recv(65536)
                if heard is not None:
                    heard.append(received)
                reply(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, block_on_close = True, False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def _is_whole(received: bytes) -> bool:
    head, _, body = received.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return len(body) >= int(line.split(b":")[1])
    return True


def answer(body: bytes, status: str = "200 OK", **headers: str) -> Callable[[socket.socket], None]:
    """Return a reply with these headers; underscores in their names become dashes."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return lambda connection: connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)


def raw(data: bytes) -> Callable[[socket.socket], None]:
    """Return a reply of exactly these bytes."""
    return lambda connection: connection.sendall(data)
