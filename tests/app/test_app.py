# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The web app in a separate process, over HTTP and in a real browser."""

import io
import json
import pathlib
import re
import time

import app_server
import hostile_client
import numpy as np
import oracle_pipeline as oracle
import pytest
import tiny
from app_server import SLOW
from chromium import ARGUMENTS, CHROMIUM
from hostile_client import PLAIN
from PIL import Image

from uso_jax.commands import generate
from uso_jax.images import files as image_files
from uso_jax.inference import styles

pytestmark = pytest.mark.slow  # compiles or runs whole programs

INPUTS = tuple(PLAIN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    oracle.write(folder / "weights")
    oracle.write_references(folder)
    return folder


@pytest.fixture(scope="module")
def app(folder):
    """Run the command."""
    with app_server.run(
        folder, ["--weights", str(folder / "weights"), "--upload_quota", "120"], JAX_DISABLE_MOST_OPTIMIZATIONS="1"
    ) as server:
        yield server
        # uvicorn notes a client that leaves within an answer; that is no exception of the app.
        log = server.log().replace("ERROR:    ASGI callable returned without completing response.", "")
        raised = set(re.findall(r"^([\w.]+): ", log, re.MULTILINE)) - {"note"}
        assert raised <= {"gradio.exceptions.InvalidPathError", "gradio.exceptions.Error"}  # gradio's own refusals
        assert not server.outside()


@pytest.fixture(scope="module")
def address(app):
    return app.address


class Session(app_server.Session):
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
    area = Image.new("L", (2, 1))
    area.putpixel((0, 0), 255)
    area.save(folder / "area.png")
    masks = dict(extra_mask=session.upload("area.png", (folder / "area.png").read_bytes()))
    record, image = session.generate(**files, **masks, style_strength=0.5, content_strength=2, height=24)
    assert image.size == (32, 24)
    assert json.loads(image.text["uso_jax"]) == record
    assert [style["path"] for style in record["request"]["styles"]] == ["ink.png", "felt.png"]
    assert [mask and mask["path"] for mask in record["request"]["style_masks"]] == [None, "area.png"]
    assert "the extra style image needs that image" in session.refused(**masks)
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


def test_an_image_is_edited(folder, session):
    photo = oracle.photo(7, 40, 24)
    mask = Image.new("L", photo.size)
    mask.paste(255, (0, 0, 8, 24))
    image, area = session.upload("photo.png", png(photo)), session.upload("mask.png", png(mask))
    record, made = session.generate(image=image, mask=area, strength=1)
    assert made.size == (40, 24) and record["request"]["image"]["path"] == "photo.png"
    assert np.abs(pixels(made) - pixels(photo))[:, 8:].max() == 0
    assert np.abs(pixels(made) - pixels(photo))[:, :8].max() > 20
    assert "a mask needs an image to edit" in session.refused(mask=area)


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
    assert "turned.jpg' is turned" in record["notes"][0] and "reference_mode" not in record["request"]
    record, _ = session.generate(content=file, reference_mode="upstream")
    assert record["notes"] == [] and record["request"]["reference_mode"] == "upstream"
    assert "Reading of images" in session.refused(content=file, reference_mode="sideways")
    assert "reference_mode must be one of" in session.refused(content=file, reference_mode=None)


def test_mistakes_in_other_fields(session):
    assert "nothing to generate" in session.refused(prompt=" ")
    # 2**64 is beyond JSON's numbers here, and is refused before the queue.
    status = session.join(len(INPUTS), list((PLAIN | dict(seed=2**64)).values())).status_code
    assert 400 <= status < 500, status
    assert "seed" in session.refused(seed=2**64 - 1, count=2)
    record, _ = session.generate(width=30)
    assert record["notes"] == ["width 30 is not a multiple of 8: 24 is used"]


def test_no_path_that_the_browser_names_is_read(folder, address, session):
    secret = folder / "secret.png"
    oracle.photo(3, 9, 9).save(secret)
    for path in (str(secret), str(tiny.ROOT / "docs" / "images" / "mini.png"), "/etc/passwd"):
        answer = session.call(len(INPUTS), list((PLAIN | dict(content=session.file(path, "a.png"))).values()))
        assert not answer["success"] and not answer["output"].get("data")
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


def test_values_of_other_types_are_sentences_that_name_the_control(session):
    nan, inf = float("nan"), float("inf")
    for name, value, said in (
        ("width", nan, "Width: nan"),
        ("style_strength", inf, "Strength: "),
        ("seed", inf, "Seed (-1: random): inf"),
        ("num_steps", [3], "Number of steps: [3]"),
        ("guidance", "4", "Guidance: '4'"),
        ("count", 9, "Images: "),
        ("height", {"a": 1}, "Height: {'a': 1}"),
        ("keep_size", "yes", "keep_size must be true or false"),
        ("saved", ["absent"], "is not in the list of choices"),
        ("saved", ["my ink"] * 9, "saved styles are at most 8 names"),
        ("content", 3, "reload the page"),
        ("prompt", "long " * 801, "has 4005 characters; the limit is 4000"),
    ):
        assert said in session.refused(**{name: value}), name
    answer = session.call(len(INPUTS), [])
    assert not answer["success"] and "reload the page" in answer["output"]["error"]
    assert session.join(len(INPUTS), ["a" * 70_000]).status_code == 413
    assert session.join(len(INPUTS), [], session_hash="a b").status_code == 400
    assert session.generate()[1].size == (32, 32)


def test_a_session_that_stops_or_leaves_frees_the_device(address, session):
    long = list((PLAIN | dict(num_steps=50, count=8, width=48, height=48)).values())
    session.call(len(INPUTS), list((PLAIN | dict(count=8, width=48, height=48)).values()))  # compiles
    start = time.monotonic()
    assert session.call(len(INPUTS), long)["success"]
    whole = time.monotonic() - start
    for leave in ("cancel", "close"):
        other = Session(address, f"other_{leave}")
        event = other.join(len(INPUTS), long).json()["event_id"]
        with other.http.stream("GET", "/queue/data", params={"session_hash": other.name}) as stream:
            for line in stream.iter_lines():
                if '"process_starts"' in line:
                    break
            if leave == "cancel":
                body = dict(session_hash=other.name, fn_index=other.event(len(INPUTS)), event_id=event)
                assert other.http.post("/cancel", json=body).json()["success"]
        other.http.close()
        start = time.monotonic()
        assert session.generate()[1].size == (32, 32)
        assert time.monotonic() - start < max(whole / 2, 2), leave


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
    said = page.inner_text(".toast-body.error")
    assert "image 'bad.png' cannot be decoded (unknown image format" in said and "replace or remove it" in said
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


# It uses up the quota, so it comes last.
def test_a_hostile_client(app, session):
    client = hostile_client.Client(app)
    try:
        sent = hostile_client.attack(client, requests=60)
    finally:
        client.close()
    assert not [one for one in sent if one.status >= 500] and not hostile_client.bare_errors(sent)
    assert not hostile_client.files_read(sent)
    assert {one.status for one in sent if one.kind in ("hosts", "origins", "addresses")} <= {403, 404, 200}
    assert not [one for one in sent if one.kind in ("hosts", "origins") and one.status != 403]
    assert {one.status for one in sent if one.kind == "large_uploads"} == {200, 413}
    deadline = time.monotonic() + SLOW
    while session.join(len(INPUTS), list(PLAIN.values())).status_code == 429:  # the flood is still drawn
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert session.wait()["success"] and not app.outside()
