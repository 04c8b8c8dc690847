# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A local endpoint that answers as a script says, and writes down what it was asked."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator


class Endpoint:
    """`reply` gives for a request's body (status, body, headers), a text to answer with, or seconds to say nothing."""

    def __init__(self, reply: Callable[[dict], tuple[int, object, dict] | str | float]):
        self.reply, self.asked, self.headers = reply, [], []
        self.url = ""


@contextlib.contextmanager
def serve(reply) -> Iterator[Endpoint]:
    """Run an endpoint on a free port of this machine."""
    endpoint = Endpoint(reply)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/chat/completions"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            endpoint.asked.append(body)
            endpoint.headers.append(dict(self.headers))
            answer = endpoint.reply(body)
            if isinstance(answer, float):
                time.sleep(answer)
                return
            status, content, headers = answer if isinstance(answer, tuple) else (200, message(answer), {})
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def message(text) -> dict:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def text_of(body: dict) -> str:
    return "".join(part.get("text", "") for part in body["messages"][0]["content"])


def images_of(body: dict) -> list[str]:
    parts = body["messages"][0]["content"]
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
