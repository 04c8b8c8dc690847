# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The web app in a separate process, over HTTP and in a real browser."""

import contextlib
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import httpx
import numpy as np
import oracle_pipeline as oracle
import pytest
import tiny
from chromium import ARGUMENTS, CHROMIUM
from PIL import Image

from uso_jax.commands import generate
from uso_jax.images import files as image_files
from uso_jax.inference import styles

pytestmark = pytest.mark.slow  # compiles or runs whole programs

SLOW = 120  # seconds that an image may take on a busy machine
PLAIN = dict(  # in the order of the form's controls, then the session's images
    prompt="a fox", content=None, content_strength=1, style=None, style_strength=1, extra=None, extra_strength=1,
    saved=[], saved_strength=1, width=32, height=32, keep_size=False, seed=5, num_steps=2, guidance=4, content_ref=32,
    count=1, made=None,
)  # fmt: skip
INPUTS = tuple(PLAIN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    oracle.write(folder / "weights")
    oracle.write_references(folder)
    return folder


@pytest.fixture(scope="module")
def address(folder):
    """Run the command; yield its address."""
    command = [sys.executable, "-u", "scripts/app.py", "--weights", str(folder / "weights")]
    inherited = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    changes = {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "XDG_DATA_HOME": str(folder / "data"),
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
    }
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=tiny.ROOT, env=inherited | changes, stdout=log, stderr=log)
    said = ""
    try:
        while not (found := re.search(r"USO at (\S+)/", said)):
            assert server.poll() is None, said
            time.sleep(0.2)
            said = (folder / "log").read_text()
        yield found[1]
        assert server.poll() is None
        raised = set(re.findall(r"^([\w.]+): ", (folder / "log").read_text(), re.MULTILINE)) - {"note"}
        assert raised <= {"gradio.exceptions.InvalidPathError", "gradio.exceptions.Error"}  # gradio's own refusals
    finally:
        server.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        server.kill()
        server.wait()


class Session:
    """A browser's side of gradio's protocol."""

    def __init__(self, address: str):
        self.http = httpx.Client(base_url=f"{address}/gradio_api", timeout=SLOW)
        self.config = httpx.get(f"{address}/config").json()

    def upload(self, name: str, data: bytes) -> dict:
        """Upload a file; return its description in a request."""
        answer = self.http.post("/upload", files={"files": (name, data)})
        answer.raise_for_status()
        return self.file(answer.json()[0], name)

    @staticmethod
    def file(path: str, name: str) -> dict:
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def call(self, num_inputs: int, data: list) -> dict:
        """Run the event with this number of inputs; return the last message."""
        index = next(d["id"] for d in self.config["dependencies"] if len(d["inputs"]) == num_inputs)
        body = {"fn_index": index, "data": data, "session_hash": "test"}
        assert self.http.post("/queue/join", json=body).status_code == 200
        with self.http.stream("GET", "/queue/data", params={"session_hash": "test"}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if message.get("msg") == "process_completed":
                    return message
        raise AssertionError("no answer")

    def generate(self, **changes) -> tuple[dict, Image.Image]:
        """Generate; return the record and the image."""
        answer = self.call(len(INPUTS), list((PLAIN | changes).values()))
        assert answer["success"], answer
        gallery, record, download, _ = answer["output"]["data"]
        file = download["value"]["path"]
        assert gallery["value"][0]["image"]["path"].endswith(file.rsplit("/", 1)[1])
        data = self.http.get(f"/file={file}")
        data.raise_for_status()
        return record, Image.open(io.BytesIO(data.content))

    def refused(self, **changes) -> str:
        """Generate, which must fail; return the message that is shown."""
        answer = self.call(len(INPUTS), list((PLAIN | changes).values()))
        assert not answer["success"]
        return answer["output"]["error"]


@pytest.fixture(scope="module")
def session(address):
    session = Session(address)
    yield session
    session.http.close()


def png(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), int)


# ---------------------------------------------------------------------------------------------------- HTTP


def test_an_image_repeats_on_the_command_line(folder, session, monkeypatch):
    uploads = {"content": "fox", "style": "ink", "extra": "felt"}
    files = {kind: session.upload(f"{n}.png", (folder / f"{n}.png").read_bytes()) for kind, n in uploads.items()}
    record, image = session.generate(**files, style_strength=0.5, content_strength=2, height=24)
    assert image.size == (32, 24)
    assert json.loads(image.text["uso_jax"]) == record
    assert [style["path"] for style in record["request"]["styles"]] == ["ink.png", "felt.png"]
    assert record["request"]["style_strength"] == [0.5, 1.0] and record["request"]["content_strength"] == 2.0
    image.save(folder / "made.png", pnginfo=_text(image))  # beside its references
    import jax

    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: first)
    generate.main(
        ["--from_image", str(folder / "made.png"), "--weights", str(folder / "weights"), "--save_path",
         str(folder / "again"), "--mesh", "data=1", "--no_compilation_cache"]
    )  # fmt: skip
    (again,) = (folder / "again").glob("*.png")
    assert image_files.read_record(again)["identity"] == record["identity"]
    with Image.open(again) as repeated:
        assert np.abs(pixels(repeated) - pixels(image)).max() <= 1  # compiled with and without optimisations


def _text(image: Image.Image):
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_itxt("uso_jax", image.text["uso_jax"])
    return info


def test_styles_are_saved_and_chosen_by_name(folder, session):
    ink = session.upload("ink.png", (folder / "ink.png").read_bytes())
    save = lambda name, style=ink: session.call(4, [name, style, None, []])
    answer = save("my ink")
    assert answer["success"], answer
    assert answer["output"]["data"][0]["value"] == ["my ink"]
    written = styles.read_style(folder / "data" / "uso_jax" / "styles" / "my ink.safetensors")
    assert [image["name"] for image in written.images] == ["ink.png"]
    assert "already" in save("my ink")["output"]["error"]
    for name in ("../ink", "", "/tmp/ink", ".ink", "a" * 65):
        assert "made of letters" in save(name)["output"]["error"]
    assert "no style to save" in save("empty", None)["output"]["error"]
    _, by_image = session.generate(style=ink)
    record, by_name = session.generate(saved=["my ink"])
    np.testing.assert_array_equal(pixels(by_image), pixels(by_name))
    assert record["request"]["styles"][0]["path"] == "my ink"
    for name in ("absent", str(folder / "data" / "uso_jax" / "styles" / "my ink.safetensors"), "../styles/my ink"):
        assert not session.call(len(INPUTS), list((PLAIN | dict(saved=[name])).values()))["success"]


def test_all_kinds_of_files(folder, session):
    photo = oracle.photo(1, 12, 8)
    deep = Image.fromarray(pixels(photo)[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, data, refusal in (
        ("text.png", b"no image", "cannot be decoded"),
        ("empty.png", b"", "is empty"),
        ("half.png", png(photo)[:60], "cannot be decoded"),
        ("huge.png", png(Image.new("1", (20_000, 20_000))), "has too many pixels"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "cannot be decoded"),
        ("narrow.png", png(oracle.photo(1, 400, 2)), "too narrow for a content image"),
        ("dot.png", png(Image.new("RGB", (1, 1), "red")), None),
        ("cmyk.tif", png(photo.convert("CMYK"), "TIFF"), None),
        ("deep.png", png(deep), None),
        ("two.gif", png(photo.quantize(), "GIF", save_all=True, append_images=[Image.new("RGB", (12, 8))]), None),
        ("turned.jpg", png(photo, "JPEG", exif=exif), None),
    ):
        file = session.upload(name, data)
        if refusal:
            said = session.refused(content=file)
            assert refusal in said and name in said and str(folder) not in said
        else:
            record, _ = session.generate(content=file)
            assert record["request"]["contents"][0]["path"] == name


def test_mistakes_in_other_fields(session):
    assert "nothing to generate" in session.refused(prompt=" ")
    assert "seed must be a whole number" in session.refused(seed=2**40)
    record, _ = session.generate(width=30)
    assert record["notes"] == ["width 30 is not a multiple of 8: 24 is used"]


def test_no_path_that_the_browser_names_is_read(folder, address, session):
    secret = folder / "secret.png"
    oracle.photo(3, 9, 9).save(secret)
    for path in (str(secret), str(tiny.ROOT / "docs" / "images" / "mini.png"), "/etc/passwd"):
        answer = session.call(len(INPUTS), list((PLAIN | dict(content=session.file(path, "a.png"))).values()))
        assert not answer["success"]
        for url in (f"/file={path}", f"/file/{path}"):
            assert session.http.get(url).status_code in (403, 404)
    for path in ("http://127.0.0.1:1/a.png", "https://example.org/a.png"):
        assert "not fetched from addresses" in session.refused(content=session.file(path, "a.png"))
    style = next((folder / "data").rglob("*.safetensors"), folder / "weights" / "pipeline.json")
    assert session.http.get(f"/file={style}").status_code == 403
    assert session.http.post("/upload", files={"files": ("large.png", bytes(21 * 2**20))}).status_code == 413
    assert session.generate()[1].size == (32, 32)


def test_it_listens_on_this_machine_alone(address):
    assert address.startswith("http://127.0.0.1:")
    port = int(address.rsplit(":", 1)[1])
    lines = [line.split() for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {line[1] for line in lines if line[3] == "0A" and int(line[1].split(":")[1], 16) == port}
    assert listening == {f"0100007F:{port:04X}"}


# ---------------------------------------------------------------------------------------------------- a browser


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: apt-get install chromium (issue 5)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)


def test_a_browser_generates_downloads_and_shows_errors(folder, address, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(SLOW * 1000)
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(error))
    page.goto(address)
    page.fill("#prompt textarea", "a fox runs")
    for box, name in (("content", "fox"), ("style", "ink")):
        page.set_input_files(f"#{box} input[type=file]", str(folder / f"{name}.png"))
        page.wait_for_selector(f"#{box} img")
    page.fill("#seed input", "7")
    page.click("#generate")
    page.wait_for_selector("#images img")
    page.wait_for_selector("#download:not([disabled])")
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(folder / "downloaded.png")
    wanted = image_files.read_record(folder / "downloaded.png")["request"]
    assert (wanted["prompt"], wanted["seed"]) == ("a fox runs", 7)
    assert [wanted[kind][0]["path"] for kind in ("contents", "styles")] == ["fox.png", "ink.png"]

    # A file that is not an image: a message is shown, and the next request works.
    (folder / "bad.png").write_text("no image")
    page.set_input_files("#extra input[type=file]", str(folder / "bad.png"))
    page.wait_for_timeout(1000)
    page.click("#generate")
    page.wait_for_selector(".toast-body.error")
    assert "image 'bad.png' cannot be decoded (unknown image format); replace or remove it" in page.inner_text(
        ".toast-body.error"
    )
    page.click("#extra button[aria-label='Clear'], #extra button[aria-label='Remove Image']")

    # An example fills in the controls.
    page.click("td:has-text('several styles')")
    page.wait_for_selector("#extra img")
    page.click("#generate")
    page.wait_for_selector("#images >> text=a picture of a tree · seed 7")
    page.click("button:has-text('Record'):not(#download)")
    page.wait_for_selector("#record >> text=a picture of a tree")
    assert not errors
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]
