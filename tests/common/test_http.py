# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Requests to servers that answer badly, slowly or too much: every one ends in time, in bounds and in one exception."""

import gzip
import time
import tracemalloc
import zlib

import hostile_server
import pytest
from hostile_server import answer, raw
from hypothesis import given, settings
from hypothesis import strategies as st

from uso_jax.common.errors import InputError
from uso_jax.common.http import HttpAnswer, HttpError, HttpServer

SECRET = "sk-planted-0123456789"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def post(reply, **options) -> HttpAnswer:
    with hostile_server.serve(reply) as address:
        return HttpServer(f"{address}/v1", **{"timeout": 5.0, "key": SECRET} | options).post("ask", {"a": 1})


def test_a_question_and_its_answer():
    heard = []
    with hostile_server.serve(answer(b'{"b": 2}', Retry_After="7"), heard) as address:
        found = HttpServer(f"{address}/v1/?version=3", key=f"{SECRET}\n").post("ask", {"a": "\ud800é"})
    assert found == HttpAnswer(200, '{"b": 2}', 7.0)
    head, _, body = heard[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/ask?version=3 HTTP/1.1\r\n") and body == rb'{"a": "\ud800\u00e9"}'
    assert f"authorization: bearer {SECRET}".encode() in head.lower()


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oh", "302 Found", "777 What"])
def test_answers_of_any_status_are_answers_and_redirects_are_not_followed(status):
    heard = []
    with hostile_server.serve(answer(b"no", status, Location="/v1/elsewhere"), heard) as address:
        assert HttpServer(address).post("ask", {}).status == int(status[:3])
    assert len(heard) == 1


def drip(start: bytes, piece: bytes):
    """Reply with a byte now and then, for as long as the client waits."""

    def reply(connection):
        connection.sendall(start)
        for _ in range(200):
            connection.sendall(piece)
            time.sleep(0.05)

    return reply


@pytest.mark.parametrize(
    "reply",
    [
        drip(HEAD + b"Content-Length: 1000\r\n\r\n", b"a"),
        drip(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        drip(HEAD, b"X"),  # a header that does not end
        drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        lambda connection: time.sleep(3),
    ],
    ids=["body", "chunks", "header", "interim", "silence"],
)
def test_the_deadline_is_for_all_of_a_request(reply):
    start = time.monotonic()
    with pytest.raises(HttpError, match="no answer in time") as error:
        post(reply, timeout=0.3)
    assert error.value.kind == "timeout" and time.monotonic() - start < 2


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
def test_a_bomb_takes_no_memory(packing):
    bomb = bytes(100 << 20)
    bomb = gzip.compress(bomb) if packing == "gzip" else zlib.compress(bomb)
    tracemalloc.start()
    with pytest.raises(HttpError, match="larger than 4194304 bytes"):
        post(answer(bomb, Content_Encoding=packing))
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


def test_packed_answers_are_unpacked_within_the_limit():
    assert post(answer(gzip.compress(b"[]"), Content_Encoding="gzip")).text == "[]"
    assert post(answer(bytes(1000)), max_bytes=1000).text == "\0" * 1000
    endless = lambda connection: connection.sendall(HEAD + b"\r\n" + bytes(1 << 20))
    for reply in (answer(bytes(1001)), endless, answer(gzip.compress(b"") + bytes(2000), Content_Encoding="gzip")):
        with pytest.raises(HttpError, match="larger than 1000 bytes") as error:
            post(reply, max_bytes=1000)
        assert error.value.kind == "nonsense"


@pytest.mark.parametrize(
    "reply",
    [
        answer(b"no gzip", Content_Encoding="gzip"),
        answer(gzip.compress(bytes(99))[:-9], Content_Encoding="gzip"),
        answer(gzip.compress(gzip.compress(b"{}")), Content_Encoding="gzip, gzip"),
        answer(b"{}", Content_Encoding="br"),
        raw(b""),
        raw(b"\0" * 100),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        raw(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100_000),
        answer(b"", "302 Found", Location="http://[::1"),
    ],
)
def test_damaged_answers(reply):
    with pytest.raises(HttpError) as error:
        post(reply)
    assert error.value.kind in ("nonsense", "unreachable") and SECRET not in str(error.value)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.binary(max_size=80), st.sampled_from([b"", HEAD, HEAD + b"\r\n", HEAD + b"Content-Encoding: gzip\r\n\r\n"]))
def test_any_bytes_are_an_answer_or_one_exception(data, start):
    try:
        assert isinstance(post(raw(start + data)), HttpAnswer)
    except HttpError as error:
        assert error.kind in ("nonsense", "unreachable")


@pytest.mark.parametrize("header, seconds", [("nan", 0), ("-3", 0), ("1e999", 0), ("0.5", 0.5), ("Mon, 1 Jan", 0)])
def test_the_wait_that_a_server_asks_for(header, seconds):
    assert post(answer(b"", "429 Slow", Retry_After=header)).retry_after == seconds


def test_the_key_is_nowhere_in_an_answer_or_a_message():
    assert post(answer(f"bad key {SECRET}".encode())).text == "bad key [key]"
    assert post(answer(b"none the wiser"), key="none").text == "none the wiser"  # no secret
    for bad in ("sk-\n-injected: 1", "sk-ключ", "two words"):
        with pytest.raises(InputError, match="copy it again") as error:
            HttpServer("https://example.org", key=bad)
        assert bad not in str(error.value)
    with pytest.raises(InputError, match="user name or password") as error:
        HttpServer(f"https://user:{SECRET}@example.org")
    assert SECRET not in str(error.value)


def test_the_key_crosses_a_network_only_encrypted():
    for address in ("http://example.org/v1", "http://10.0.0.3:8000", "http://localhost.example.org", "http://0.0.0.0"):
        with pytest.raises(InputError, match=r"unencrypted to http://.*key_over_http") as error:
            HttpServer(address, key=SECRET)
        assert SECRET not in str(error.value)
        HttpServer(address)
        HttpServer(address, key=SECRET, key_over_http=True)
    for address in ("https://example.org", "http://localhost:8000/v1", "http://127.0.0.9", "http://[::1]:8000"):
        HttpServer(address, key=SECRET)


def test_no_proxy_hears_the_key_on_its_way_to_this_machine(monkeypatch):
    proxied = []
    with hostile_server.serve(answer(b"proxy"), proxied) as proxy, hostile_server.serve(answer(b"server")) as address:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("ALL_PROXY", proxy)
        assert HttpServer(address, key=SECRET).post("ask", {}).text == "server"
    assert not proxied


@pytest.mark.parametrize(
    "address", ["", "host:1", "ftp://host", "http://", "http://[::1", "http://h:99999", "http://\ud800"]
)
def test_bad_addresses(address):
    with pytest.raises(InputError, match="endpoint"):
        HttpServer(address)
