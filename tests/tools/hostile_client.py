# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Send 200 hostile requests of all kinds to the web app, on this machine only, and report whether it withstood them.

    python tests/tools/hostile_client.py

It starts the app with mini and ends it again. The app must go on serving, answer no request with a status of 500 or
more, connect to no other machine, and stay within 300 MB of its idle memory.
"""

import contextlib
import io
import itertools
import pathlib
import socket
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import httpx
from app_server import AppServer, Session, run
from PIL import Image

REQUESTS = 200
QUOTA = 150  # megabytes of a client
LEFT_OPEN = 4  # uploads that are not finished
MEMORY = 300  # megabytes above idle
PLAIN = dict(  # in the order of the form's controls, then the session's images
    prompt="a fox", content=None, content_strength=1, style=None, style_strength=1, extra=None, extra_strength=1,
    saved=[], saved_strength=1, width=32, height=32, keep_size=False, seed=5, image=None, mask=None, strength=0.75,
    style_mask=None, extra_mask=None,
    negative_prompt="", true_guidance=1, num_steps=2, guidance=4, content_ref=32, count=1, reference_mode="displayed",
    made=None,
)  # fmt: skip


class Sent(NamedTuple):
    """One request: its kind, the status (0: the server closed the connection), and what it said."""

    kind: str
    status: int
    text: str = ""


class Client:
    """Sends one request of a kind per call; each kind is a generator of requests that does not end."""

    def __init__(self, app: AppServer):
        self.address, self.port = app.address, int(app.address.rsplit(":", 1)[1])
        self.http = httpx.Client(base_url=app.address, timeout=60)
        self.session, self.open = Session(app.address, "hostile"), []
        self.kinds: dict[str, Iterator[Sent]] = {
            kind.__name__: kind()
            for kind in (self.hosts, self.origins, self.addresses, self.paths, self.routes, self.values, self.prompts,
                         self.bombs, self.half_open, self.messages, self.sessions, self.forms, self.garbage,
                         self.flood, self.large_uploads)
        }  # fmt: skip

    def close(self) -> None:
        """Close connections that were left open."""
        for connection in self.open:
            connection.close()
        self.http.close()
        self.session.http.close()

    def _get(self, kind: str, path: str, **headers: str) -> Sent:
        return self._raw(kind, f"GET {path} HTTP/1.1\r\nHost: {headers.pop('host', f'127.0.0.1:{self.port}')}\r\n"
                         + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n")  # fmt: skip

    def _raw(self, kind: str, request: str | bytes) -> Sent:
        data = request if isinstance(request, bytes) else request.encode("latin-1")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(data)
            if answer := connection.recv(4096).decode("latin-1"):
                return Sent(kind, int(answer.split(" ", 2)[1]), answer.partition("\r\n\r\n")[2][:200])
        return Sent(kind, 0)

    def _post(self, kind: str, path: str, body: bytes, **headers: str) -> Sent:
        answer = self.http.post(path, content=body, headers={"Content-Type": "application/json"} | headers)
        return Sent(kind, answer.status_code, answer.text[:200])

    def _event(self, kind: str, **changes) -> Sent:
        """Ask for an image; the text is what the page shows."""
        answer = self.session.join(len(PLAIN), list((PLAIN | changes).values()))
        if answer.status_code != 200:
            return Sent(kind, answer.status_code, answer.text[:200])
        found = self.session.wait()
        return Sent(kind, 200, "drawn" if found["success"] else found["output"].get("error") or "")

    # ------------------------------------------------------------------------------------------------- kinds

    def hosts(self):
        for name in itertools.cycle(("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1",
                                     "", "[::1", "localhost@evil.example", "169.254.169.254")):  # fmt: skip
            yield self._get("hosts", "/config", host=name)

    def origins(self):
        for origin in itertools.cycle(("http://evil.example", "null", "https://127.0.0.1.evil.example", "file://",
                                       f"http://localhost:{self.port + 1}", "http://[")):  # fmt: skip
            yield self._post("origins", "/gradio_api/queue/join", b"{}", Origin=origin)
            yield self._get("origins", "/config", Origin=origin)

    def addresses(self):
        for prefix in itertools.cycle(("/gradio_api/file=", "/gradio_api/file/", "/gradio_api/proxy=", "/file=")):
            for url in ("https://example.org/a.png", "http%3A//example.org/", "//example.org/a", "HTTP://example.org",
                        "ftp://example.org/a"):  # fmt: skip
                yield self._get("addresses", prefix + url)
            yield self._event("addresses", content=self.session.file("https://example.org/a.png", "a.png"))

    def paths(self):
        names = ("/etc/passwd", "../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "..%5c..%5cetc", "%00",
                 "a" * 3000, "/proc/self/environ", "%2fetc%2fshadow", "/dev/zero", "C:/windows/win.ini")  # fmt: skip
        for name in itertools.cycle(names):
            for prefix in ("/gradio_api/file=", "/assets/", "/static/", "/svelte/"):
                yield self._get("paths", prefix + name)
            yield self._event("paths", style=self.session.file("/etc/hostname", "a.png"))

    def routes(self):
        for path in itertools.cycle(("component_server", "run/predict", "api/predict", "call/generate", "vibe-edit",
                                     "process_recording", "deep_link?session_hash=a", "monitoring")):  # fmt: skip
            yield self._post("routes", f"/gradio_api/{path}", b'{"data": []}')
            yield self._get("routes", f"/gradio_api/{path}")

    def values(self):
        nan, inf = float("nan"), float("inf")
        wrong = (nan, inf, -inf, 10**400, -1, 1e300, "text", [1], {"a": 1}, True, None, [[[]]], 2**63)
        names = [name for name in PLAIN if name != "made"]
        for number in itertools.count():  # the lengths have no common divisor, so all pairs come
            yield self._event("values", **{names[number % len(names)]: wrong[number % len(wrong)]})

    def prompts(self):
        for size in itertools.cycle((5_000, 1 << 20, 60_000)):
            yield self._event("prompts", prompt="long " * (size // 5))

    def bombs(self):
        made = bombs()
        for name, data in itertools.cycle(made.items()):
            answer = self.http.post("/gradio_api/upload", files={"files": (name, data)})
            yield Sent("bombs", answer.status_code, answer.text[:200])
            if answer.status_code == 200:
                file = self.session.file(answer.json()[0], name)
                yield self._event("bombs", content=file, style=file, extra=file)

    def half_open(self):
        head = (
            f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Length: 20000000\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\nContent-Disposition: form-data; "
        )
        for rest in itertools.cycle(('name="files"; filename="a.png"\r\n\r\n', 'name="field"\r\n\r\n', "")):
            connection = socket.create_connection(("127.0.0.1", self.port), timeout=5)
            self.open.append(connection)
            if len(self.open) > LEFT_OPEN:  # so that there is a place for other uploads
                self.open.pop(0).close()
            status = 200  # nothing is expected
            with contextlib.suppress(OSError):
                connection.sendall(head.encode() + rest.encode() + bytes(2 << 20))
                connection.settimeout(0.2)
                status = int(connection.recv(100).split(b" ")[1])
            yield Sent("half_open", status)

    def messages(self):
        event = self.session.event(len(PLAIN))
        join = f'{{"fn_index": {event}, "session_hash": "a", "data": '
        bodies = (b"[" * 60_000, b'{"data":' * 8000, join.encode() + b"[" * 30_000 + b"]" * 30_000 + b"}", b"",
                  b"\xff\xfe", join.encode() + rb'["\ud800"]}', join.encode() + b"[]}", b"null", b"3",
                  b'{"fn_index": 9999, "session_hash": "a", "data": []}', b'{"fn_index": "a", "data": {}}',
                  join.encode() + b"9" * 5000 + b"}", b'{"a": 1, "a": 2}', b"x" * (1 << 20))  # fmt: skip
        for body in itertools.cycle(bodies):
            for path in ("queue/join", "cancel", "reset"):
                yield self._post("messages", f"/gradio_api/{path}", body)

    def sessions(self):
        for name in itertools.cycle(("unknown", "a" * 5000, "../../x", "%00", "", "%F0%9F%92%A9")):
            yield self._get("sessions", f"/gradio_api/queue/data?session_hash={name}")
            yield self._get("sessions", f"/gradio_api/heartbeat/{name}")
            yield self._get("sessions", f"/gradio_api/upload_progress?upload_id={name}")
            body = f'{{"session_hash": "{name}", "fn_index": 1, "event_id": "a"}}'.encode()
            yield self._post("sessions", "/gradio_api/cancel", body)

    def forms(self):
        part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\nx\r\n'
        kinds = itertools.cycle(("multipart/form-data; boundary=b", "multipart/form-data", "text/plain", ""))
        names = itertools.cycle((b"a.png", b"../../x", b"\0", b"a" * 5000, b"", "é\u202e".encode()))
        for number in itertools.count():
            body = part % next(names) * (2000 if number % 7 == 3 else 1) + (b"--b--\r\n" if number % 3 else b"")
            yield self._post("forms", "/gradio_api/upload", body, **{"Content-Type": next(kinds)})

    def garbage(self):
        for data in itertools.cycle((b"\0" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01" * 50,
                                     b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
                                     b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
                                     b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                                     b"Content-Length: -3\r\n\r\n")):  # fmt: skip
            yield self._raw("garbage", data)

    def flood(self):
        for number in itertools.count():
            answer = self.session.join(len(PLAIN), list(PLAIN.values()), session_hash=f"flood{number}")
            yield Sent("flood", answer.status_code, answer.text[:200])

    def large_uploads(self):
        for number in itertools.count():
            file = ("large.png", bytes([number % 256]) * (19 << 20 if number % 5 else 25 << 20))
            answer = self.http.post("/gradio_api/upload", files={"files": file})
            yield Sent("large_uploads", answer.status_code, answer.text[:200])


def bombs() -> dict[str, bytes]:
    """Return small files of large images, and formats whose readers run programs or take memory."""

    def saved(kind: str, mode: str, size: tuple[int, int], **options) -> bytes:
        buffer = io.BytesIO()
        Image.new(mode, size).save(buffer, kind, **options)
        return buffer.getvalue()

    def png(width: int, height: int, depth: int, colour: int, channels: int) -> bytes:
        chunk = lambda kind, data: (len(data).to_bytes(4, "big") + kind + data
                                    + zlib.crc32(kind + data).to_bytes(4, "big"))  # fmt: skip
        packer = zlib.compressobj(9)
        row = bytes(1 + width * depth * channels // 8)
        data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
        head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")

    return {
        "deep.png": png(7999, 8000, 16, 0, 1),
        "allowed.png": png(4090, 4090, 16, 6, 4),
        "wide.png": saved("PNG", "1", (20_000, 20_000)),
        "text.png": png(8, 8, 8, 0, 1)[:-12] + b"\0\0\0\0",
        "bomb.gif": saved("GIF", "P", (16_000, 16_000)),
        "bomb.tif": saved("TIFF", "1", (30_000, 30_000), compression="group4"),
        "bomb.webp": saved("WEBP", "RGB", (8000, 8000), quality=1, method=0),
        "program.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9999 9999\n%%EOF\n",
        "icon.ico": saved("ICO", "RGBA", (256, 256)),
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    }


def attack(client: Client, requests: int = REQUESTS) -> list[Sent]:
    """Send requests of all kinds in turn; the floods and what takes the quota come last."""
    last = ("flood", "large_uploads")
    share = max(requests // 5, 1)
    turns = [name for name in client.kinds if name not in last]
    first = itertools.cycle([client.kinds[name] for name in [*turns, "values", "values", "bombs"]])
    sent = [next(next(first)) for _ in range(requests - share)]
    return sent + [next(client.kinds[last[number % 2]]) for number in range(share)]


def files_read(sent: list[Sent]) -> list[Sent]:
    """Return the requests that got an image of a file or an address that was not uploaded."""
    named = [one for one in sent if one.kind in ("paths", "addresses", "routes")]
    return [one for one in named if one.text == "drawn" or "root:" in one.text]


def bare_errors(sent: list[Sent]) -> list[Sent]:
    """Return the events that ended without an image and without a sentence."""
    return [one for one in sent if one.status == 200 and one.kind in ("values", "prompts", "bombs") and not one.text]


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        with run(folder, ["--weights", "mini", "--upload_quota", str(QUOTA)]) as app:
            client = Client(app)
            assert client._event("idle").text == "drawn"
            idle, start = app.megabytes("VmRSS"), time.monotonic()
            app.forget_peak()
            sent = attack(client)
            seconds, peak = time.monotonic() - start, app.megabytes("VmHWM")
            client.close()
            after = Session(app.address, "after")
            begin = time.monotonic()
            while (answer := after.join(len(PLAIN), list(PLAIN.values()))).status_code == 429:
                time.sleep(1)
            serves = answer.status_code == 200 and after.wait()["success"]
            drained, rest = time.monotonic() - begin, app.megabytes("VmRSS")
            used = sum(path.stat().st_size for path in folder.rglob("uploads/**/*") if path.is_file()) / (1 << 20)
            outside = app.outside()
            tracebacks = app.log().count("Traceback (most recent call last)")
    for kind in dict.fromkeys(one.kind for one in sent):
        found = [one for one in sent if one.kind == kind]
        statuses = {status: sum(one.status == status for one in found) for status in sorted({o.status for o in found})}
        print(f"{kind:14} {len(found):4} requests, statuses {statuses}")
    failed = [one for one in sent if one.status >= 500]
    print(f"{len(sent)} requests in {seconds:.0f} s; status 500 and more: {failed}; bare errors: {bare_errors(sent)}")
    print(f"files read that were not uploaded: {files_read(sent)}")
    print(f"memory: idle {idle:.0f} MB, peak {peak:.0f} MB, afterwards {rest:.0f} MB; uploads {used:.0f} MB")
    print(
        f"serves afterwards: {serves} (after {drained:.0f} s); connections outside: {outside}; tracebacks: {tracebacks}"
    )
    return int(bool(failed or bare_errors(sent) or files_read(sent) or outside or not serves or peak - idle > MEMORY))


if __name__ == "__main__":
    sys.exit(main())
