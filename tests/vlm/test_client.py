# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The client of vision-language models: requests, cache, retries and failures; and judges that use it."""

import base64
import gzip
import io
import itertools
import json
import pathlib
import tempfile

import fake_vlm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from uso_jax.common.errors import InputError
from uso_jax.vlm import judges
from uso_jax.vlm.client import Shown, Turn, Vlm, VlmError

IMAGE = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
QUICK = dict(backoff=0.001, timeout=5.0)


def number(text: str) -> int:
    return int(text)


def scripted(*answers):
    """Reply with these in turn, and with the last one from then on."""
    turn = itertools.chain(answers, itertools.repeat(answers[-1]))
    return lambda body: next(turn)


def test_question_and_cache(tmp_path):
    cache = tmp_path / "new" / "answers.jsonl"
    with fake_vlm.serve(lambda body: f"{len(fake_vlm.images_of(body))} images") as endpoint:
        vlm = Vlm("judge", endpoint.url, cache=cache, api_key="secret", **QUICK)
        assert vlm.ask(["compare", IMAGE, "with", Image.fromarray(IMAGE[:, ::-1])]) == "2 images"
        assert vlm.ask(["compare", IMAGE, "with", IMAGE[:, ::-1].copy()]) == "2 images"
        assert len(endpoint.asked) == 1
        assert vlm.ask(["compare", IMAGE, "with", IMAGE], take=1) == "2 images"
        vlm.close()
    body = endpoint.asked[0]
    assert (body["model"], body["temperature"], body["max_tokens"], body["seed"]) == ("judge", 0.0, 1400, 0)
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["text", "image_url", "text", "image_url"]
    sent = fake_vlm.images_of(body)[0].removeprefix("data:image/png;base64,")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(sent)))), IMAGE)
    assert endpoint.headers[0]["Authorization"] == "Bearer secret" and "secret" not in cache.read_text()
    # Another take is another question, with some temperature.
    assert (endpoint.asked[1]["seed"], endpoint.asked[1]["temperature"]) == (3, 0.3)
    offline = Vlm("judge", cache=cache)
    assert offline.ask(["compare", IMAGE, "with", IMAGE[:, ::-1].copy()]) == "2 images"
    for other in (Vlm("another", cache=cache), Vlm("judge", cache=cache, max_tokens=7)):
        with pytest.raises(VlmError, match="no endpoint to ask") as error:
            other.ask(["compare", IMAGE, "with", IMAGE[:, ::-1].copy()])
        assert error.value.kind == "missing"


def test_cache_after_a_kill(tmp_path):
    cache = tmp_path / "answers.jsonl"
    with fake_vlm.serve(fake_vlm.text_of) as endpoint:
        vlm = Vlm("m", endpoint.url, cache=cache, **QUICK)
        assert [vlm.ask([text]) for text in ("one", "two")] == ["one", "two"]
        cache.write_bytes(cache.read_bytes()[:-9])
        again = Vlm("m", endpoint.url, cache=cache, **QUICK)
        assert [again.ask([text]) for text in ("one", "two")] == ["one", "two"]
        assert [fake_vlm.text_of(body) for body in endpoint.asked] == ["one", "two", "two"]
    assert Vlm("m", cache=cache).ask(["two"]) == "two"


def test_large_images_are_shrunk():
    with fake_vlm.serve(lambda body: fake_vlm.images_of(body)[0]) as endpoint:
        sent = Vlm("m", endpoint.url, max_pixels=300 * 300, **QUICK).ask([np.zeros((200, 800, 3), np.uint8)])
    assert Image.open(io.BytesIO(base64.b64decode(sent.removeprefix("data:image/jpeg;base64,")))).size == (600, 150)


def test_busy_endpoints_are_tried_again():
    busy = (429, {"error": "slow down"}, {"Retry-After": "0.05"})
    with fake_vlm.serve(scripted(busy, (503, b"", {}), (200, b"<html>", {}), "4")) as endpoint:
        assert Vlm("m", endpoint.url, **QUICK).ask(["?"], number) == 4
        assert len(endpoint.asked) == 4
    with fake_vlm.serve(lambda body: busy) as endpoint, pytest.raises(VlmError, match="status 429") as error:
        Vlm("m", endpoint.url, tries=3, **QUICK).ask(["?"], number)
    assert error.value.kind == "busy" and len(endpoint.asked) == 3


def test_retry_after_counts(monkeypatch):
    waited = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waited.append)
    with fake_vlm.serve(scripted((429, {}, {"Retry-After": "7"}), (429, {}, {"Retry-After": "900"}), "1")) as endpoint:
        assert Vlm("m", endpoint.url, timeout=5.0, longest_wait=30.0).ask(["?"], number) == 1
    assert waited == [7.0, 30.0]


def test_timeouts_fail():
    with fake_vlm.serve(lambda body: 0.4) as endpoint, pytest.raises(VlmError, match="no answer in time") as error:
        Vlm("m", endpoint.url, tries=2, timeout=0.1, backoff=0.001).ask(["?"])
    assert error.value.kind == "timeout" and len(endpoint.asked) == 2
    with pytest.raises(VlmError, match="cannot be reached") as error:
        Vlm("m", endpoint.url, tries=2, **QUICK).ask(["?"])
    assert error.value.kind == "unreachable"


def test_nonsense_is_asked_again_then_fails_and_is_repeated_offline(tmp_path):
    cache = tmp_path / "answers.jsonl"
    with fake_vlm.serve(scripted("great likeness!", "3")) as endpoint:
        assert Vlm("m", endpoint.url, **QUICK).ask(["?"], number) == 3
    assert [body["temperature"] for body in endpoint.asked] == [0.0, 0.3]
    with fake_vlm.serve(lambda body: "great likeness!") as endpoint:
        for url in (endpoint.url, ""):
            with pytest.raises(VlmError, match=r"no usable answer in 2 .*great likeness") as error:
                Vlm("m", url, cache=cache, takes=2, **QUICK).ask(["?"], number)
            assert error.value.kind == "nonsense"
        assert len(endpoint.asked) == 2
    assert [json.loads(line)["answer"] for line in cache.read_text().splitlines()] == ["great likeness!"] * 2


@pytest.mark.parametrize("content", [None, "", [], 3])
def test_empty_messages_are_no_answers(content, tmp_path):
    cache = tmp_path / "answers.jsonl"
    says = lambda body: (200, fake_vlm.message(content), {})
    with fake_vlm.serve(says) as endpoint, pytest.raises(VlmError, match="empty message") as error:
        Vlm("m", endpoint.url, cache=cache, tries=2, **QUICK).ask(["?"])
    assert error.value.kind == "nonsense" and not cache.exists()


def test_refusals_and_mistakes():
    with fake_vlm.serve(lambda body: (400, {"error": "too many images"}, {})) as endpoint:
        with pytest.raises(VlmError, match=r"status 400.*too many images") as error:
            Vlm("m", endpoint.url, **QUICK).ask(["?"])
        assert error.value.kind == "refused" and len(endpoint.asked) == 1
    with fake_vlm.serve(lambda body: (401, {}, {})) as endpoint, pytest.raises(InputError, match="check the key"):
        Vlm("m", endpoint.url, **QUICK).ask(["?"])
    for arguments in (dict(model=""), dict(model="m", base_url="localhost:8000"), dict(model="m", tries=0)):
        with pytest.raises(InputError):
            Vlm(**arguments)


HOSTILE = {
    "nested": b"[" * 100_000,
    "surrogate": json.dumps(fake_vlm.message("half \ud83d")).encode(),
    "nul": json.dumps(fake_vlm.message("a\0b")).encode(),
    "number": b'{"choices": ' + b"9" * 5000 + b"}",
    "list": b'{"choices": {"0": 1}}',
    "latin": b'{"choices": "\xe9"}',
    "bomb": gzip.compress(bytes(50 << 20)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_one_failed_question(name, tmp_path):
    hostile = (200, HOSTILE[name], {"Content-Encoding": "gzip"} if name == "bomb" else {})
    with fake_vlm.serve(lambda body: hostile if "bad" in fake_vlm.text_of(body) else "4") as endpoint:
        vlm = Vlm("m", endpoint.url, cache=tmp_path / "answers.jsonl", tries=2, **QUICK)
        with pytest.raises(VlmError) as error:
            vlm.ask(["bad"], number)
        assert error.value.kind == "nonsense" and vlm.ask(["good"], number) == 4
    assert Vlm("m", cache=tmp_path / "answers.jsonl").ask(["good"], number) == 4


def test_a_question_with_half_a_character_is_asked_and_kept(tmp_path):
    with fake_vlm.serve(lambda body: "4") as endpoint:
        assert Vlm("m", endpoint.url, cache=tmp_path / "c.jsonl", **QUICK).ask(["half \ud83d"], number) == 4
    assert len((tmp_path / "c.jsonl").read_text().splitlines()) == 1


def test_a_mistake_after_the_first_answer_ends_no_run():
    with fake_vlm.serve(scripted("4", (401, {}, {}), (404, {}, {}), "3")) as endpoint:
        vlm = Vlm("m", endpoint.url, **QUICK)
        assert vlm.ask(["1"], number) == 4
        for question in "23":
            with pytest.raises(VlmError, match="status 40") as error:
                vlm.ask([question])
            assert error.value.kind == "refused"
        assert vlm.ask(["4"], number) == 3
    with fake_vlm.serve(lambda body: (307, b"", {"Location": "/v1/chat/completions"})) as endpoint:
        with pytest.raises(VlmError, match="redirects"):
            Vlm("m", endpoint.url, **QUICK).ask(["?"])
        assert len(endpoint.asked) == 1


def test_damaged_lines_of_the_cache_are_asked_again(tmp_path):
    cache = tmp_path / "answers.jsonl"
    with fake_vlm.serve(fake_vlm.text_of) as endpoint:
        assert Vlm("m", endpoint.url, cache=cache, **QUICK).ask(["one"]) == "one"
        whole = cache.read_bytes()
        cache.write_bytes(b"[" * 50_000 + b"\n\xff\n\0\0\n{}\n[1]\n" + whole + b'{"key": "a", "answer": 3}\n{"key')
        vlm = Vlm("m", endpoint.url, cache=cache, **QUICK)
        assert [vlm.ask([text]) for text in ("one", "two")] == ["one", "two"] and len(endpoint.asked) == 2
    assert [Vlm("m", cache=cache).ask([text]) for text in ("one", "two")] == ["one", "two"]


def test_the_key_is_in_no_file_and_no_message(tmp_path, monkeypatch, capfd, caplog):
    secret = "sk-planted-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    escaped = json.dumps(fake_vlm.message(f"You sent {secret}.")).replace("planted", "\\u0070lanted").encode()
    said = []
    for reply in (
        f"You sent {secret}.",
        (200, escaped, {}),
        (400, {"error": secret}, {}),
        (401, {"error": secret}, {}),
    ):
        with fake_vlm.serve(lambda body, reply=reply: reply) as endpoint:
            vlm = Vlm("m", endpoint.url, cache=tmp_path / "c.jsonl", api_key=secret, tries=1, **QUICK)
            judge = judges.open_judge(f"m@{endpoint.url}", tmp_path / "judge.jsonl")
            for ask in (
                lambda text, vlm=vlm: vlm.ask([text]),
                lambda text, judge=judge: judge.ask([Turn("user", (text,))]),
            ):
                try:
                    said.append(ask(str(reply)[:9]))
                except (VlmError, judges.NoAnswer, InputError) as error:
                    said.append(str(error))
        assert all(headers["Authorization"] == f"Bearer {secret}" for headers in endpoint.headers)
    assert "You sent [key]." in said
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir()).decode()
    assert written.count("You sent [key].") == 4
    assert secret not in written + "".join(said) + "".join(capfd.readouterr()) + caplog.text


@pytest.mark.parametrize("reply", [b'{"of": 3}', b"[" * 50_000, b"\xff", b"\0\0\0"])
def test_damaged_stored_answers_are_named(reply, tmp_path):
    path = tmp_path / "judge.jsonl"
    good = {"of": "a", "reply": "4", "judge": "m", "date": "2026-01-01"}
    line = json.dumps(good).encode() + b"\n"
    path.write_bytes(line + reply + b"\n")
    with pytest.raises(InputError, match=r"judge\.jsonl line 2.*remove that line"):
        judges.open_judge("replay", path)
    for torn in (b"", b"{", b"\0" * 200_000):
        path.write_bytes(line + torn)
        assert judges.open_judge("replay", path).name == "m" and path.read_bytes() == line
    path.write_bytes(b"{")
    assert judges.open_judge("fake", path).record()["from"] is None and path.read_bytes() == b""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["message", "content", "x"]), inner),
    max_leaves=6,
)


def test_any_json_is_an_answer_or_one_failed_question():
    reply = []
    with fake_vlm.serve(lambda body: (200, reply[-1], {})) as endpoint:
        vlm = Vlm("m", endpoint.url, tries=1, **QUICK)

        @settings(max_examples=40, deadline=None, derandomize=True)
        @given(JSON, st.booleans())
        def check(value, wrap):
            reply.append({"choices": [value]} if wrap else value)
            try:
                assert isinstance(vlm.ask([str(len(reply))]), str)
            except VlmError as error:
                assert error.kind == "nonsense"

        check()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.binary(max_size=60), st.sampled_from([b"", b"\n", b'{"key": "a", "answer": "b"}\n']))
def test_any_file_of_answers_is_read_or_refused(data, start):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "answers.jsonl")
        path.write_bytes(start + data)
        with pytest.raises(VlmError, match="no endpoint"):  # what is damaged is asked again
            Vlm("m", cache=path).ask(["?"])
        try:
            judges.open_judge("fake", path)
        except InputError as error:
            assert "answers.jsonl line" in str(error)


def test_it_judges_for_the_evaluation(tmp_path):
    """Rounds are separate questions, answers are cached, and failures are not answers."""
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).save(buffer, "PNG")
    image, path = buffer.getvalue(), tmp_path / "judge.jsonl"
    numbers, ask = (
        iter("abc"),
        lambda judge, **options: judge.ask([Turn("user", (Shown(image), "how like?"))], **options),
    )
    with fake_vlm.serve(lambda body: f"sample {next(numbers)}, {body.get('max_tokens')} tokens") as endpoint:
        judge = judges.open_judge(f"qwen@2@{endpoint.url}", path)
        assert ask(judge, parameters={"max_tokens": 16}) == "sample a, 16 tokens"
        assert ask(judge, round_=1, parameters={"temperature": 0.7}) == "sample b, None tokens"
        assert ask(judge, parameters={"max_tokens": 16}) == "sample a, 16 tokens"
        assert [body.get("temperature") for body in endpoint.asked] == [None, 0.7]
        assert endpoint.asked[0]["model"] == "qwen@2"
        assert fake_vlm.images_of(endpoint.asked[0]) == [f"data:image/png;base64,{base64.b64encode(image).decode()}"]
        # A round is a sample: the same request again, of which nothing but the judge's file remembers the answer.
        assert ask(judge, round_=2, parameters={"max_tokens": 16}) == "sample c, 16 tokens"
        assert endpoint.asked[0] == endpoint.asked[2] and "seed" not in endpoint.asked[2]
    assert ask(judges.open_judge("replay", path), parameters={"max_tokens": 16}) == "sample a, 16 tokens"
    refuse = fake_vlm.serve(lambda body: (400, {"error": "no"}, {}))
    with refuse as endpoint, pytest.raises(judges.NoAnswer, match="refused"):
        judges.open_judge(f"qwen@2@{endpoint.url}", path).ask([Turn("user", ("another question",))])
    for spec in ("qwen", "@http://x", "qwen@localhost:8000"):
        with pytest.raises(InputError, match="MODEL@URL"):
            judges.open_judge(spec, path)
