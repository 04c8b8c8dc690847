# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which requests reach the page: hosts, origins, routes, bodies, and the quota of uploads."""

import asyncio
import contextlib
import json
import os
import pathlib
import time

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from uso_jax.app import guard, quota
from uso_jax.app.guard import Guard
from uso_jax.app.quota import MEGABYTE, UploadQuota
from uso_jax.web.hosts import Hosts
from uso_jax.web.requests import Refused

PAGE = "127.0.0.1:7860"
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
JOIN = {"data": [float("nan")], "fn_index": 1, "session_hash": "abc"}


class Gradio:
    """Stands in for gradio: reads the body and says what it got."""

    def __init__(self, status: int = 200):
        self.status, self.seen = status, []

    async def __call__(self, scope, receive, send):
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client is gone")
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.seen.append((scope["path"], body))
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"gradio"})


def ask(path, method="GET", host=PAGE, app=None, hosts=None, limits=None, folder="/nowhere", left=None, **options):
    """Send one request through a guard."""
    limits = limits or UploadQuota(10 * MEGABYTE, 20 * MEGABYTE)
    leave = left.append if left is not None else lambda session: None
    wrapped = Guard(
        app or Gradio(), hosts or Hosts("127.0.0.1"), limits, folder=pathlib.Path(folder), events={0, 1}, leave=leave
    )

    async def send():
        transport = httpx.ASGITransport(wrapped, client=("10.0.0.9", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
            headers = {"Host": host} | options.pop("headers", {})
            return await client.request(method, path, headers=headers, **options)

    return asyncio.run(send())


# ------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize("host", [PAGE, "localhost:7860", "LOCALHOST", "[::1]:7860", "127.0.0.2", "localhost."])
def test_this_machine_is_known(host):
    assert ask("/", host=host).text == "gradio"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=30))
@example("evil.example")
@example("127.0.0.1.evil.example")
@example("localhost@evil.example")
@example("192.168.0.7")
@example("")
def test_every_other_name_is_refused(host):
    known = host.lower().rsplit(":", 1)[0].rstrip(".") in ("localhost", "127.0.0.1")
    assert Hosts("127.0.0.1").allows(host) == known or host.startswith(("127.", "[::1]"))


def test_names_can_be_allowed():
    assert ask("/", host="box.example", hosts=Hosts("127.0.0.1", ["BOX.example"])).status_code == 200
    assert ask("/", host="gpu:7860", hosts=Hosts("gpu")).status_code == 200
    everywhere = Hosts("0.0.0.0")
    assert ask("/", host="192.168.0.7:7860", hosts=everywhere).status_code == 200
    for host, hosts in (("evil.example", everywhere), ("192.168.0.7", Hosts("127.0.0.1"))):
        answer = ask("/", host=host, hosts=hosts)
        assert answer.status_code == 403 and "--allowed_hosts" in answer.json()["detail"]
    forwarded = {"X-Forwarded-Host": "evil.example"}
    assert ask("/", headers=forwarded).status_code == 403


@pytest.mark.parametrize(
    "origin, status",
    [(f"http://{PAGE}", 200), ("http://127.0.0.1", 403), ("http://localhost:7860", 403), ("http://evil.example", 403),
     ("null", 403), ("", 403), ("file://", 403), (f"http://{PAGE}.evil.example", 403), (f"ftp://{PAGE}", 403)],
)  # fmt: skip
def test_other_origins_are_refused(origin, status):
    for method, path in (("POST", "/gradio_api/queue/join"), ("GET", "/config"), ("OPTIONS", "/config")):
        got = ask(path, method, headers={"Origin": origin}, content=json.dumps(JOIN)).status_code
        assert got == (405 if method == "OPTIONS" and status == 200 else status)


def test_origins_behind_a_proxy():
    hosts = Hosts("127.0.0.1", ["box.example"])
    assert hosts.allows_origin("https://box.example", "box.example")
    assert hosts.allows_origin("https://box.example", "localhost:7860")
    assert not hosts.allows_origin("https://other.example", "box.example")
    assert Hosts("127.0.0.1").allows_origin("https://localhost", "localhost")


# ------------------------------------------------------------------------------------------------ routes


@pytest.mark.parametrize("prefix", ["/gradio_api/file=", "/gradio_api/file/", "/gradio_api/proxy="])
@pytest.mark.parametrize("url", ["http://a/b", "HTTPS://a", "//a/b", "ftp:a", "http%3A//a", " http://a", "gopher://a"])
def test_addresses_are_not_fetched(prefix, url):
    app = Gradio()
    assert ask(prefix + url, app=app).status_code in ((403,) if prefix.endswith("file=") else (403, 404))
    assert not app.seen


def test_only_the_pages_own_files_are_sent(tmp_path):
    served, secret = tmp_path / "served", tmp_path / "secret"
    served.mkdir()
    (served / "a b.png").write_text("a")
    secret.write_text("secret")
    (served / "link").symlink_to(secret)
    get = lambda name: ask(f"/gradio_api/file={name}", folder=served).status_code
    assert get(f"{served}/a b.png") == 200
    for name in (secret, f"{served}/../secret", f"{served}/link", "/etc/passwd", "/proc/self/environ", "/dev/zero"):
        assert get(name) == 403
    for name in (served, f"{served}/absent", f"{served}/{'a' * 300}"):
        assert get(name) == 404
    assert get("%00") == get("a" * 3000) == 404


@pytest.mark.parametrize(
    "path", ["run/predict", "api/predict", "call/x", "component_server", "vibe-edit", "process_recording", "monitoring"]
)
def test_routes_that_the_page_does_not_need(path):
    app = Gradio()
    for method in ("GET", "POST"):
        assert ask(f"/gradio_api/{path}", method, app=app).status_code == 404
    assert ask("/", "PUT", app=app).status_code == 405 and not app.seen


# ------------------------------------------------------------------------------------------------ bodies


def join(body, app=None, **options):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ask("/gradio_api/queue/join", "POST", app=app, content=content, **options)


def test_proper_messages_pass_unchanged():
    app = Gradio()
    assert join(JOIN, app).text == "gradio" and app.seen[0][1] == json.dumps(JOIN).encode()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"\xff", b"[" * 60_000, b'{"data": ' + b"[" * 5000 + b"]" * 5000 + b"}",
     JOIN | {"fn_index": 7}, JOIN | {"fn_index": "1"}, JOIN | {"data": 3}, JOIN | {"session_hash": "a/b"},
     JOIN | {"session_hash": "a" * 65},
     JOIN | {"session_hash": None}, {"data": []}, JOIN | {"data": ["\ud800"]}, JOIN | {"data": [10**400]}],
)  # fmt: skip
def test_other_messages_are_a_sentence(body):
    app = Gradio()
    answer = join(body, app)
    assert answer.status_code == 400 and "reload the page" in answer.json()["detail"] and not app.seen


def test_a_message_that_is_too_large_or_too_slow(monkeypatch):
    assert join(JOIN | {"data": ["a" * (1 << 20)]}).status_code == 413
    monkeypatch.setattr(guard, "MESSAGE_TIME", 0.05)

    async def slowly():
        yield b"{"
        await asyncio.sleep(0.5)

    assert ask("/gradio_api/queue/join", "POST", content=slowly()).status_code == 408


def test_a_full_queue_is_no_error_of_the_server():
    answer = join(JOIN, Gradio(503))
    assert answer.status_code == 429 and "try again" in answer.json()["detail"]


def test_sessions_that_leave_are_told():
    left = []
    ask("/gradio_api/cancel", "POST", content=b'{"session_hash": "abc"}', left=left)
    ask("/gradio_api/queue/data?session_hash=def", left=left)
    assert left == ["abc", "def"]


# ------------------------------------------------------------------------------------------------ uploads


def upload(size, limits=None, **options):
    limits = limits or UploadQuota(40 * MEGABYTE, 80 * MEGABYTE)
    return ask("/gradio_api/upload", "POST", limits=limits, headers=FORM, content=bytes(size), **options)


def test_an_upload_is_limited():
    assert upload(MEGABYTE).text == "gradio"
    answer = upload(21 * MEGABYTE)
    assert answer.status_code == 413 and answer.text == "a file may have at most 20 MB; shrink the image"
    app = Gradio()
    for kind in ("text/plain", "multipart/form-data", "multipart/form-data; boundary="):
        assert ask("/gradio_api/upload", "POST", app=app, headers={"Content-Type": kind}).status_code == 400
    assert not app.seen


def test_the_quota_of_a_client_and_of_all(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(quota.time, "monotonic", lambda: now[0])
    limits = UploadQuota(3 * MEGABYTE, 5 * MEGABYTE)
    assert [upload(MEGABYTE, limits).status_code for _ in range(4)] == [200, 200, 200, 413]
    assert "your uploads reach the limit of 3 MB" in upload(1, limits).text
    limits.take("another", 2 * MEGABYTE)
    with pytest.raises(Refused, match="uploads of all users reach the limit of 5 MB"):
        limits.take("third", 1)
    now[0] += quota.UPLOADS_KEPT + quota.SWEEP_EVERY + 1
    assert upload(MEGABYTE, limits).status_code == 200
    assert limits._bytes == {"10.0.0.9": MEGABYTE}  # clients that are gone take no memory


def test_uploads_at_once():
    limits = UploadQuota(MEGABYTE, MEGABYTE)
    with contextlib.ExitStack() as open_ones:
        for client in ("a", "b"):
            for _ in range(quota.AT_ONCE_PER_CLIENT):
                open_ones.enter_context(limits.upload(client))
        with pytest.raises(Refused, match="too many uploads at once"), limits.upload("c"):
            pass
    assert not limits._open and upload(1, limits).status_code == 200


def test_an_upload_that_is_too_slow_ends(monkeypatch):
    monkeypatch.setattr(guard, "UPLOAD_TIME", 0.05)

    async def slowly():
        yield b"a"
        await asyncio.sleep(0.5)

    answer = ask("/gradio_api/upload", "POST", headers=FORM, content=slowly())
    assert answer.status_code == 408


def test_an_upload_that_breaks_off_is_no_error():
    limits, sent = UploadQuota(MEGABYTE, MEGABYTE), []
    waiting = [{"type": "http.request", "body": b"a" * 99, "more_body": True}, {"type": "http.disconnect"}]
    headers = [(b"host", PAGE.encode()), (b"content-type", FORM["Content-Type"].encode())]
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": headers, "client": ("a", 1)}
    leave = lambda session: None
    wrapped = Guard(Gradio(), Hosts("127.0.0.1"), limits, folder=pathlib.Path("/"), events=(), leave=leave)

    async def receive():
        return waiting.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(wrapped(scope, receive, send))
    assert not sent and limits._bytes == {"a": 99}


def test_old_files_are_deleted(tmp_path):
    now, uploads, images = time.time(), tmp_path / "uploads", tmp_path / "images"
    (uploads / "hash").mkdir(parents=True)
    images.mkdir()
    ages = {
        uploads / "hash" / "old.png": quota.UPLOADS_KEPT + 9, uploads / "hash" / "new.png": 60,
        uploads / "tmpbroken": quota.BROKEN_KEPT + 9, uploads / "tmpactive": 60,
        images / "old.png": quota.IMAGES_KEPT + 9, images / "new.png": quota.UPLOADS_KEPT + 9,
    }  # fmt: skip
    for path, age in ages.items():
        path.write_bytes(b"a")
        os.utime(path, (now - age, now - age))
    uploaded = {str(uploads / "hash" / name) for name in ("old.png", "new.png", "gone.png")}
    quota.sweep(uploaded, uploads, images)
    left = {path for path in ages if path.exists()}
    assert {path.name for path in left} == {"new.png", "tmpactive"} and len(left) == 3
    assert uploaded == {str(uploads / "hash" / "new.png")}
