# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Make the images of docs/app.md: the page, each of its examples drawn, and a drawing under way.

python tests/tools/make_screenshots.py docs/images
"""

import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from chromium import ARGUMENTS, CHROMIUM
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from tiny import ROOT

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


def main(folder: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        log = pathlib.Path(temporary, "log")
        environment = os.environ | {"XDG_DATA_HOME": temporary, "XDG_CACHE_HOME": temporary}
        with log.open("w") as stream:
            command = [sys.executable, "-u", "scripts/app.py", "--weights", "small"]
            server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream)
        try:
            while not (found := re.search(r"USO at (\S+)/", log.read_text())):
                assert server.poll() is None, log.read_text()
                time.sleep(0.5)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
                page = browser.new_page(viewport={"width": 1280, "height": 1060})
                page.set_default_timeout(600_000)
                page.goto(found[1])
                page.wait_for_selector("#generate")
                draw(page, folder)
                phone = browser.new_page(viewport={"width": 390, "height": 844})
                phone.goto(found[1])
                phone.locator("tbody tr").nth(3).locator("td").first.click()
                phone.wait_for_timeout(2500)
                phone.click("#generate")
                phone.wait_for_selector("#images img")
                phone.wait_for_timeout(2500)
                phone.evaluate("window.scrollTo(0, 0)")
                save(phone, folder / "app_phone.webp", (0, 0, 390, 844))
                browser.close()
        finally:
            server.kill()
            server.wait()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
