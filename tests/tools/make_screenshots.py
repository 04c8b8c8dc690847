# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Make the images of docs/app.md: the page, each of its examples drawn, a drawing under way, training, preferences.

python tests/tools/make_screenshots.py docs/images [generate] [train] [prefer]
"""

import contextlib
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
from chromium import ARGUMENTS, CHROMIUM
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from tiny import ROOT

from uso_jax.data.drawings.canvas import Pose
from uso_jax.data.drawings.look import DrawingStyle
from uso_jax.data.drawings.styles import render
from uso_jax.data.drawings.subjects import SUBJECTS
from uso_jax.data.rollout_store import Request, RolloutStore

WIDTH = 960  # of the files, in pixels
NAMES = {0: "subject", 2: "colours", 3: "layout_kept", 5: "several_styles"}  # rows of the examples
SEEDS = {0: 1, 2: 1, 3: 4, 5: 7}  # of these rows


def save(page: Page, path: pathlib.Path, part: tuple[int, int, int, int] | None = None) -> None:
    image = Image.open(io.BytesIO(page.screenshot(full_page=part is None))).convert("RGB").crop(part)
    image.thumbnail((WIDTH, 2 * WIDTH), Image.Resampling.LANCZOS)
    image.save(path, quality=80, method=6)


def draw(page: Page, folder: pathlib.Path) -> None:
    page.mouse.wheel(0, 3000)  # examples load when they are seen
    page.wait_for_timeout(3000)
    page.evaluate("window.scrollTo(0, 0)")
    save(page, folder / "app.webp")
    for row, name in NAMES.items():
        page.locator("tbody tr").nth(row).locator("td").first.click()
        page.wait_for_timeout(2500)
        page.click("#generate")
        page.wait_for_selector(f"#images >> text=seed {SEEDS[row]}")
        page.wait_for_timeout(1500)
        page.evaluate("window.scrollTo(0, 0)")
        save(page, folder / f"app_{name}.webp", (0, 170, 1280, 1050))
    page.click("button:has-text('Advanced options')")
    page.get_by_label("number input for Images").fill("8")
    page.get_by_label("number input for Number of steps").fill("50")
    page.click("#generate")
    page.wait_for_selector("#images >> text=s/step")
    page.evaluate("window.scrollTo(0, 0)")
    save(page, folder / "app_progress.webp", (645, 170, 1270, 660))


BLACK, CREAM = (0.1, 0.1, 0.12), (0.98, 0.94, 0.84)
PLAIN = DrawingStyle("plain", (0.16, 0.36, 0.8), CREAM, BLACK, "blue", "cream")
GLASS = DrawingStyle("stained glass", (0.2, 0.6, 0.3), CREAM, BLACK, "green", "cream")


def write_triplets(folder: pathlib.Path) -> None:
    """Draw images to train on: subjects in stained glass, and as they are."""
    folder.mkdir()
    for name in [name for name in SUBJECTS if name.isalpha()][:16]:
        for part, look in {"": GLASS, ".content": PLAIN}.items():
            Image.fromarray(render(SUBJECTS[name], Pose(0.75), look, 128)).save(folder / f"{name}{part}.png")


def write_roll_outs(folder: pathlib.Path) -> None:
    """Draw what a run might have made for one request: its subject in stained glass at two sizes."""
    names = [name for name in SUBJECTS if name.isalpha()]
    content, style = (render(SUBJECTS[names[i]], Pose(0.75), look, 256) for i, look in enumerate((PLAIN, GLASS)))
    images = np.stack([render(SUBJECTS[names[0]], Pose(size), GLASS, 256) for size in (0.75, 0.4)])
    nothing = np.zeros(len(images))
    request = Request(f"a {names[0]} in the style of the image", content, [style])
    RolloutStore(folder / "rollouts" / "policy").write(0, images, np.zeros((2, 2), np.int64), {}, nothing, [request])


def prefer(browser: Browser, address: str, folder: pathlib.Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(address)
    page.wait_for_selector("#prefer_image_right img")
    page.wait_for_timeout(1000)
    save(page, folder / "app_preferences.webp")


def train(browser: Browser, address: str, folder: pathlib.Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 1060})
    page.set_default_timeout(600_000)
    page.goto(address)
    page.fill("#steps input", "200")
    page.fill("#every input", "40")
    page.fill("#caption input, #caption textarea", "in stained glass")
    page.click("#plan")
    page.wait_for_selector("#findings table")
    page.click("#start")
    page.wait_for_selector("#grids >> text=step 120")
    page.wait_for_timeout(4000)
    page.evaluate("window.scrollTo(0, 0)")
    page.evaluate("document.querySelector('#training_about code').textContent = '~/images'")
    save(page, folder / "app_training.webp")
    phone = browser.new_page(viewport={"width": 390, "height": 844})
    phone.goto(address)
    phone.wait_for_selector("#grids img")
    phone.wait_for_timeout(4000)
    phone.locator("#run").scroll_into_view_if_needed()
    phone.evaluate("window.scrollBy(0, document.querySelector('#run').getBoundingClientRect().top - 10)")
    phone.wait_for_timeout(1000)
    phone_image = Image.open(io.BytesIO(phone.screenshot())).convert("RGB")
    phone_image.save(folder / "app_training_phone.webp", quality=80, method=6)
    page.wait_for_selector("#status >> text=Finished")


@contextlib.contextmanager
def served(*arguments: str, folder: str) -> Iterator[str]:
    """Run the app and yield its address."""
    log = pathlib.Path(folder, "log")
    environment = os.environ | {"XDG_DATA_HOME": folder, "XDG_CACHE_HOME": folder}
    with log.open("w") as stream:
        command = [sys.executable, "-u", "scripts/app.py", *arguments]
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream)
    try:
        while not (found := re.search(r"USO at (\S+)/", log.read_text())):
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)
        yield found[1]
    finally:
        server.kill()
        server.wait()


def generate(browser: Browser, address: str, folder: pathlib.Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 1060})
    page.set_default_timeout(600_000)
    page.goto(address)
    page.wait_for_selector("#generate")
    draw(page, folder)
    phone = browser.new_page(viewport={"width": 390, "height": 844})
    phone.goto(address)
    phone.locator("tbody tr").nth(3).locator("td").first.click()
    phone.wait_for_timeout(2500)
    phone.click("#generate")
    phone.wait_for_selector("#images img")
    phone.wait_for_timeout(2500)
    phone.evaluate("window.scrollTo(0, 0)")
    save(phone, folder / "app_phone.webp", (0, 0, 390, 844))


def main(folder: pathlib.Path, parts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        if "generate" in parts:
            with served("--training", "off", folder=temporary) as address:
                generate(browser, address, folder)
        if "train" in parts:
            images = pathlib.Path(temporary, "own")
            images.mkdir()
            write_triplets(images / "mine")
            with served("--training", "only", "--training_folder", str(images), folder=temporary) as address:
                train(browser, address, folder)
        if "prefer" in parts:
            write_roll_outs(pathlib.Path(temporary))
            with served("--preferences", temporary, folder=temporary) as address:
                prefer(browser, address, folder)
        browser.close()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2:] or ["generate", "train", "prefer"])
