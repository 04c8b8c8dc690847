# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The routes on tiny weights: OpenAI's own client, hostile requests, streams, keys, and the ComfyUI node."""

import asyncio
import base64
import importlib.util
import io
import json
import re
import socket
import threading
import time

import gradio as gr
import httpx
import numpy as np
import openai
import oracle_pipeline as oracle
import pytest
import tiny
import torch
import uvicorn
from hostile_client import PLAIN
from PIL import Image
from tiny import ROOT

from uso_jax.app.actions import Actions
from uso_jax.common.errors import InputError
from uso_jax.inference.options import GenerationOptions
from uso_jax.inference.style_library import StyleLibrary
from uso_jax.service.adapters import AdapterFolder
from uso_jax.service.api import Api
from uso_jax.service.call import read_call
from uso_jax.service.client import ServerStyles, ServiceClient
from uso_jax.service.forms import form_values
from uso_jax.service.journal import Journal
from uso_jax.service.limits import Limits
from uso_jax.service.metrics import Metrics
from uso_jax.service.work import Worker
from uso_jax.web.hosts import Hosts

pytestmark = pytest.mark.slow  # compiles or runs whole programs

KEY = "a-key-of-the-tests-1"
LIMITS = Limits(
    batch=2, wait=0.02, queue=6, seconds=60.0, images=4, references=3, steps=10, pixels=64 * 64, body=1 << 20,
    body_seconds=2.0,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return oracle.open_pipeline(oracle.write(tmp_path_factory.mktemp("weights") / "tiny"))


@pytest.fixture(scope="module")
def service(pipe, tmp_path_factory):
    """Serve on a free port; yield the address, the worker and the log."""
    folder, log = tmp_path_factory.mktemp("service"), io.StringIO()
    (folder / "adapters").mkdir()
    adapters, styles = AdapterFolder(folder / "adapters"), StyleLibrary(folder / "styles")
    (folder / "styles").mkdir()
    styles.write("ink", pipe.encode_style([oracle.photo(4, 20, 20)]))
    metrics = Metrics()
    worker = Worker(pipe, LIMITS, metrics, adapters.find)
    api = Api(
        worker, LIMITS, hosts=Hosts("127.0.0.1"), keys=[KEY], adapters=adapters, styles=styles,
        journal=Journal(stream=log), metrics=metrics,
    )  # fmt: skip
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(api, log_config=None, access_log=False, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", worker, log
    server.should_exit = True
    thread.join(20)
    worker.close()


@pytest.fixture(scope="module")
def client(service):
    return openai.OpenAI(base_url=f"{service[0]}/v1", api_key=KEY, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def http(service):
    with httpx.Client(base_url=service[0], headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as made:
        yield made


def file(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def text(image: Image.Image) -> str:
    return base64.b64encode(file(image)).decode()


def pixels(one) -> np.ndarray:
    data = one.b64_json if hasattr(one, "b64_json") else one["b64_json"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), int)


PHOTO, INK = oracle.photo(1, 32, 32), oracle.photo(4, 20, 20)


# ---------------------------------------------------------------------------------------------------- OpenAI's client


def test_openai_draws(client, pipe):
    answer = client.images.generate(model="tiny", prompt="a red fox", n=2, size="40x24", extra_body={"seed": 5})
    want = pipe("a red fox", width=40, height=24, seed=[5, 6]).images
    for got, image in zip(answer.data, want, strict=True):
        assert np.abs(pixels(got) - np.asarray(image, int)).max() <= 1
    assert [one.seed for one in answer.data] == [5, 6]
    assert client.models.list().data[0].id == "tiny"
    other = client.images.generate(prompt="a red fox")
    assert other.data[0].seed != client.images.generate(prompt="a red fox").data[0].seed


def test_openai_draws_with_references(client, pipe):
    extra = {"content": text(PHOTO), "styles": ["ink", f"data:image/png;base64,{text(PHOTO)}"], "seed": 3}
    extra |= {"style_strength": [1.0, 0.5], "num_steps": 4}
    answer = client.images.generate(prompt="a fox", extra_body=extra, output_format="webp")
    assert Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))).format == "WEBP"
    answer = client.images.generate(prompt="a fox", extra_body=extra)
    styles = [pipe.encode_style([INK]), PHOTO]
    want = pipe("a fox", content=PHOTO, styles=styles, seed=3, style_strength=[1.0, 0.5], num_steps=4).images[0]
    assert np.abs(pixels(answer.data[0]) - np.asarray(want, int)).max() <= 1


def test_openai_edits(client, pipe):
    """What a mask leaves transparent is drawn anew, as OpenAI has it; without a mask the image is the content."""
    mask = np.zeros((32, 32, 4), np.uint8)
    mask[..., 3] = 255
    mask[8:16, 8:24, 3] = 0
    answer = client.images.edit(
        image=("photo.png", file(PHOTO)), mask=("mask.png", file(Image.fromarray(mask))), prompt="a red fox",
        extra_body={"strength": 1.0, "seed": 3},
    )  # fmt: skip
    got, drawn = pixels(answer.data[0]), mask[..., 3] == 0
    assert np.abs(got[~drawn] - np.asarray(PHOTO, int)[~drawn]).max() == 0
    assert np.abs(got[drawn] - np.asarray(PHOTO, int)[drawn]).max() > 20
    answer = client.images.edit(image=[("a.png", file(PHOTO)), ("b.png", file(INK))], prompt="a fox", size="32x32")
    assert pixels(answer.data[0]).shape == (32, 32, 3)
    answer = client.images.edit(image=("tall.png", file(oracle.photo(2, 24, 32))), prompt="in ink")
    assert pixels(answer.data[0]).shape == (32, 24, 3)
    # Its client sends lists and objects of a form in its own way.
    extra = {"styles": ["ink", "ink"], "style_strength": [1.0, 0.5], "outpaint": [0, 0, 8, 0], "num_steps": 4}
    answer = client.images.edit(image=("photo.png", file(PHOTO)), prompt="a fox", extra_body=extra)
    assert pixels(answer.data[0]).shape == (32, 40, 3)
    request = answer.data[0].record["request"]
    assert len(request["styles"]) == 2 and request["style_strength"] == [1.0, 0.5]
    with pytest.raises(openai.BadRequestError, match="no adapter 'felt'"):
        client.images.edit(image=("a.png", file(PHOTO)), prompt="a fox", extra_body={"adapters": {"felt": 0.5}})


def test_openai_streams(client, http):
    events = list(client.images.generate(prompt="a fox", stream=True, extra_body={"seed": 3, "num_steps": 8}))
    assert [event.type for event in events][-1] == "image_generation.completed"
    assert pixels(events[-1]).shape == (32, 32, 3)
    assert (events[-1].output_format, events[-1].size) == ("png", "32x32")
    with http.stream("POST", "/v1/images/generations", json=dict(prompt="a fox", stream=True, n=2)) as answer:
        lines = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    assert [one["index"] for one in lines if one["type"].endswith("completed")] == [0, 1]


def test_openai_reads_errors(client):
    with pytest.raises(openai.BadRequestError, match="size must be auto or WIDTHxHEIGHT"):
        client.images.generate(prompt="a", size="large")
    with pytest.raises(openai.AuthenticationError, match="needs a key"):
        client.with_options(api_key="another-key-of-20-chars").images.generate(prompt="a")


# ---------------------------------------------------------------------------------------------------- hostile requests

_PNG = file(PHOTO)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "is not valid JSON .* send a JSON object"),
        (b"[]", "is not an object"),
        (b"\xff\xfe", "UTF-8"),
        (b'{"prompt": "a", "prompt": "b"}', "twice|repeat"),
        (b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}", "deep|levels"),
        (dict(), "nothing to generate"),
        (dict(prompt=5), "prompt must be text"),
        (dict(prompt="a" * 70_000), "prompt"),
        (dict(prompt="a\0"), "NUL"),
        (dict(prompt="a", n=0), "n must be a whole number from 1 to 4"),
        (dict(prompt="a", n=10**9), "n must be a whole number"),
        (dict(prompt="a", n="2"), "n must be a whole number"),
        (dict(prompt="a", size="99999x99999"), "too many|larger"),
        (dict(prompt="a", size="512x512"), "larger than this service draws"),
        (dict(prompt="a", upscale=8.0), "larger than this service draws"),
        (dict(prompt="a", image=text(PHOTO), size="99999x99999"), "larger than this service draws"),
        (dict(prompt="a", image=text(oracle.photo(1, 2000, 1)), height=1000), "larger than this service draws"),
        (dict(prompt="a", content=text(PHOTO), content_ref=8192), "are more than 4096 pixels"),
        (dict(prompt="a", negative_prompt="b" * 70_000), "negative_prompt"),
        (dict(prompt="a", n="2" * 100_000), "n must be a whole number"),
        (dict(prompt="a", user=[{}] * 70_000), "more than 65536 values"),
        (dict(prompt="a", output_format=["png"]), "output_format must be one of"),
        (dict(prompt="a", size="32x32", width=32), "not both"),
        (dict(prompt="a", num_steps=500), "num_steps must be a whole number from 1 to 10"),
        (dict(prompt="a", seed=2**64), "more than 64 bits"),
        (dict(prompt="a", seed=-1), "seed must be a whole number"),
        (dict(prompt="a", response_format="url"), "keeps no images"),
        (dict(prompt="a", steps=3), "unknown field 'steps'"),
        (dict(prompt="a", stream="yes"), "stream must be true or false"),
        (dict(prompt="a", content="http://127.0.0.1/x.png"), "addresses are not fetched"),
        (dict(prompt="a", content="/etc/passwd"), "base64"),
        (dict(prompt="a", content="AAAA"), "content image"),
        (dict(prompt="a", content=[5]), "content must be an image in base64"),
        (dict(prompt="a", content=text(PHOTO)[:200]), "content image"),
        (dict(prompt="a", styles=["../../ink"]), "no saved style"),
        (dict(prompt="a", styles=["nope"]), "no saved style 'nope'"),
        (dict(prompt="a", styles=["ink"] * 4), "3 images together"),
        (dict(prompt="a", styles=["ink"], style_masks=[text(PHOTO)] * 2), "2 masks for 1 styles"),
        (dict(prompt="a", styles=["ink"] * 2, style_masks=[text(PHOTO)]), "1 masks for 2 styles"),
        (dict(prompt="a", styles=["ink"], style_masks=[5]), "style_masks must be an image in base64"),
        (dict(prompt="a", adapters=["../x"]), "no adapter '../x'"),
        (dict(prompt="a", adapters={"ink": "1"}), "adapters must be"),
        (dict(prompt="a", mask=text(PHOTO)), "a mask needs an image to edit"),
        (dict(prompt="a", image=text(PHOTO), outpaint=[5000] * 4), "larger than this service draws"),
        (dict(prompt="a", output_format="tiff"), "output_format must be one of"),
        (dict(prompt="a", guidance=float("1e309")), "NaN|Infinity|JSON|number"),
    ],
    ids=lambda value: re.sub(r"\W+", "_", str(value))[:40],
)
def test_mistakes_are_sentences(http, body, sentence):
    more = dict(content=body) if isinstance(body, bytes) else dict(content=json.dumps(body).encode())
    answer = http.post("/v1/images/generations", **more, headers={"Content-Type": "application/json"})
    message = answer.json()["error"]["message"]
    assert answer.status_code == 400 and re.search(sentence, message), message
    assert "Traceback" not in message and len(message) <= 1000


@pytest.mark.parametrize(
    ("more", "status"),
    [
        (dict(content=b"x", headers={"Content-Type": "multipart/form-data; boundary=b"}), 400),
        (dict(content=b"x", headers={"Content-Type": "multipart/form-data"}), 400),
        (dict(data={"prompt": "a"}, files={"image": ("x.png", b"\x89PNG\r\n\x1a\n")}), 400),
        (dict(data={"prompt": "a"}, files=[("image", ("x.png", _PNG))] * 9), 400),
        (dict(data={"prompt": "a"}, files={"weights": ("x.png", _PNG)}), 400),
        (dict(data={"prompt": "a", "num_steps": "many"}, files={"image": ("x.png", _PNG)}), 400),
        (dict(data={"prompt": "a", "n": "[[["}, files={"image": ("x.png", _PNG)}), 400),
        (dict(data={"prompt": "a", "strength": "0.5"}, files=[("image", ("x.png", _PNG)), ("mask", ("m", b""))]), 400),
        (dict(content=b"x" * (2 << 20)), 413),
        (dict(data={"prompt": "a"}), 400),
        (dict(data={"prompt": ["a", "b"]}, files={"image": ("x.png", _PNG)}), 400),
        (dict(data={"adapters[ink": "1", "prompt": "a"}, files={"image": ("x.png", _PNG)}), 400),
    ],
    ids=range(12),
)
def test_forms_with_mistakes(http, more, status):
    answer = http.post("/v1/images/edits", **more)
    assert answer.status_code == status and answer.json()["error"]["message"]


def test_a_form_has_an_empty_file_for_a_style_without_a_mask(pipe):
    fields = [
        ("prompt", "a"),
        ("styles[]", "ink"),
        ("styles[]", "ink"),
        ("style_masks", b""),
        ("style_masks", file(INK)),
    ]
    call = read_call(form_values(fields), LIMITS, lambda name: pipe.encode_style([INK]))
    assert [mask and mask.pixels.shape for mask in call.images["style_masks"]] == [None, (20, 20, 3)]


def test_other_requests(http, service):
    for method, path, status in (
        ("GET", "/", 404), ("GET", "/v1/images/generations", 405), ("PUT", "/v1/images/edits", 405),
        ("GET", "/docs", 404), ("GET", "/v1/../../etc/passwd", 404), ("POST", "/metrics", 405),
    ):  # fmt: skip
        answer = http.request(method, path)
        assert answer.status_code == status and answer.json()["error"]["message"]
    assert http.get("/healthz", headers={"Host": "evil.example"}).status_code == 403
    assert http.get("/healthz", headers={"Origin": "http://evil.example"}).status_code == 403
    with httpx.Client(base_url=service[0]) as stranger:
        assert stranger.get("/healthz").json()["status"] == "ok"
        assert stranger.get("/metrics").status_code == 401
        assert stranger.post("/v1/images/generations", json={"prompt": "a"}).status_code == 401


def test_a_request_that_fails_on_the_device_is_explained_and_not_repeated(http, service, monkeypatch):
    def fail(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    _, worker, log = service
    monkeypatch.setattr(worker.pipe.sampler, "run", fail)
    answer = http.post("/v1/images/generations", json={"prompt": "a"})
    assert answer.status_code == 500 and "drawing failed (RuntimeError)" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert "RESOURCE_EXHAUSTED" in log.getvalue() and '"where"' in log.getvalue()


def test_a_slow_body_is_ended(service):
    address = service[0].removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=20) as raw:
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {address[0]}\r\nAuthorization: Bearer {KEY}\r\n"
        raw.sendall(f"{head}Content-Length: 100\r\n\r\nxx".encode())
        assert b" 408 " in raw.recv(1000)


# ---------------------------------------------------------------------------------------------------- the queue


def test_a_full_queue_answers_429_and_a_client_that_hangs_up_frees_it(service, http):
    async def crowd():
        many = dict(prompt="a fox", n=3, num_steps=10)
        async with httpx.AsyncClient(base_url=service[0], headers=dict(http.headers), timeout=60) as client:
            posts = [asyncio.create_task(client.post("/v1/images/generations", json=many)) for _ in range(4)]
            answers = await asyncio.gather(*posts)
            assert {one.status_code for one in answers} == {200, 429}
            refused = next(one for one in answers if one.status_code == 429)
            assert "waiting" in refused.json()["error"]["message"] and refused.headers["retry-after"]
            leaving = asyncio.create_task(client.post("/v1/images/generations", json=many))
            await asyncio.sleep(0.02)
            leaving.cancel()

    asyncio.run(crowd())
    _, worker, _ = service
    end = time.monotonic() + 20
    while worker.num_waiting and time.monotonic() < end:
        time.sleep(0.02)
    assert worker.num_waiting == 0
    assert http.post("/v1/images/generations", json={"prompt": "a"}).status_code == 200


def test_the_log_has_no_prompts_and_figures_count(service, http):
    http.post("/v1/images/generations", json={"prompt": "a very secret fox"})
    *_, log = service
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert {"call", "request"} <= {line["event"] for line in lines}
    assert "secret" not in log.getvalue()
    figures = http.get("/metrics").text
    assert re.search(r'uso_requests_total\{route="/v1/images/generations",status="200"\} \d+', figures)
    assert "uso_batch_images_bucket" in figures and "uso_waiting_images 0.0" in figures


# ---------------------------------------------------------------------------------------------------- the app's client


@pytest.fixture(scope="module")
def remote(service):
    return ServiceClient(service[0], KEY)


def test_a_client_draws_what_a_pipeline_draws(remote, pipe):
    assert remote.about == pipe.about and remote.styles() == ["ink"]
    options = GenerationOptions(seed=3, num_steps=4, style_strength=[1.0, 0.5], width=40)
    said = []
    mask = Image.new("L", (2, 1))
    mask.putpixel((0, 0), 255)
    masks = [mask, None]
    request = remote.request("a fox", contents=[PHOTO], styles=[INK, "ink"], style_masks=masks, options=options)
    result = remote.generate([request], progress=lambda *one: said.append(one))
    styles = [INK, pipe.encode_style([INK])]
    want = pipe.generate([pipe.request("a fox", contents=[PHOTO], styles=styles, style_masks=masks, options=options)])
    assert np.abs(np.asarray(result.images[0], int) - np.asarray(want.images[0], int)).max() <= 1
    assert result.records[0]["request"]["seed"] == 3
    assert [one is None for one in result.records[0]["request"]["style_masks"]] == [False, True]
    edit = remote.request(
        "a fox", image=PHOTO, mask=Image.new("L", PHOTO.size), options=GenerationOptions(strength=1.0)
    )
    np.testing.assert_array_equal(np.asarray(remote.generate([edit]).images[0]), np.asarray(PHOTO))
    assert request.identity({}) != edit.identity({})


def test_a_client_says_what_the_server_says(remote, service):
    with pytest.raises(InputError, match=r"http://127.*num_steps must be a whole number from 1 to 10"):
        remote.generate([remote.request("a fox", options=GenerationOptions(num_steps=50))])
    with pytest.raises(InputError, match="needs a key"):
        ServiceClient(service[0], "another-key-of-20-chars")
    with pytest.raises(InputError, match="cannot be reached"):
        ServiceClient("http://127.0.0.1:9")
    with pytest.raises(InputError, match="run uso-style encode there"):
        ServerStyles(remote).write("new", None)


def test_the_app_draws_on_a_server(remote, tmp_path, monkeypatch):
    shown = Actions(remote, ServerStyles(remote), tmp_path)
    values = PLAIN | {"saved": ["ink"], "saved_strength": 1.0, "num_steps": 4}
    with gr.Blocks():
        _, record, *_ = shown.generate(values, [], gr.Progress())
    assert record["request"]["prompt"] == "a fox" and len(list(tmp_path.glob("*.png"))) == 1


def test_a_client_that_stops_leaves_the_server_free(remote, service):
    def stop(phase, step, total):
        raise InputError("stopped")

    with pytest.raises(InputError, match="stopped"):
        remote.generate(
            [remote.request("a fox", options=GenerationOptions(num_steps=10, width=64, height=64))], progress=stop
        )
    assert remote.generate([remote.request("a fox")]).images[0].size == (32, 32)


# ---------------------------------------------------------------------------------------------------- ComfyUI


@pytest.fixture(scope="module")
def node():
    spec = importlib.util.spec_from_file_location("uso_jax_node", ROOT / "integrations/comfyui/uso_jax_node.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_comfyui_node_draws(node, service, pipe, monkeypatch):
    monkeypatch.setenv("USO_API_KEY", KEY)
    made = node.NODE_CLASS_MAPPINGS["USOServer"]()
    inputs = made.INPUT_TYPES()
    given = {
        name: spec[1]["default"]
        for part in inputs.values()
        for name, spec in part.items()
        if len(spec) > 1 and "default" in spec[1]
    }
    tensor = lambda image: torch.from_numpy(np.asarray(image, np.float32) / 255)[None]
    given |= dict(server=service[0], prompt="a fox", seed=3, content=tensor(PHOTO), style=tensor(INK))
    (images,) = getattr(made, made.FUNCTION)(**given)
    want = np.asarray(pipe("a fox", content=PHOTO, styles=[INK], seed=3).images[0], np.float32) / 255
    assert images.shape == (1, 32, 32, 3) and images.dtype == torch.float32
    assert np.abs(images[0].numpy() - want).max() <= 1.01 / 255
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:16, 8:16] = 1
    edit = dict(given, content=None, style=None, image=tensor(PHOTO), mask=mask, strength=1.0, images=2)
    (images,) = made.draw(**edit)
    assert images.shape == (2, 32, 32, 3)
    np.testing.assert_allclose(images[0, 20:].numpy(), np.asarray(PHOTO, np.float32)[20:] / 255, atol=1e-6)
    with pytest.raises(RuntimeError, match="no adapter 'ink'"):
        made.draw(**(given | {"adapters": "ink=0.5"}))
    with pytest.raises(RuntimeError, match="cannot be reached"):
        made.draw(**(given | {"server": "http://127.0.0.1:9"}))


def test_an_adapter_folder_lists_what_it_has(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        AdapterFolder(tmp_path / "none")
    folder = AdapterFolder(tmp_path)
    (tmp_path / "ink.safetensors").write_bytes(b""), (tmp_path / "run").mkdir(), (tmp_path / "x.txt").write_text("")
    assert folder.names() == ["ink", "run"]
    assert folder.find("ink").endswith("ink.safetensors")
