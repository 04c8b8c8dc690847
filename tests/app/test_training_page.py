# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The training page in a real browser: a run is started, watched, stopped, resumed and exported."""

import os
import re
import shlex
import subprocess
import sys

import app_server
import numpy as np
import pytest
import xla_flags
from app_server import SLOW
from chromium import ARGUMENTS, CHROMIUM
from PIL import Image
from safetensors.numpy import load_file
from tiny import ROOT

from convert.__main__ import main as convert

pytestmark = pytest.mark.slow  # runs whole programs

STEPS, EVERY = 30, 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Hold twelve images with captions in mine/."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "mine").mkdir()
    draw = np.random.default_rng(0)
    for number in range(12):
        pixels = np.kron(draw.integers(0, 256, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "mine" / f"{number}.png")
        Image.fromarray(pixels[::-1]).save(folder / "mine" / f"{number}.content.png")
    return folder


@pytest.fixture(scope="module")
def environment(folder, compiled):
    return {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


@pytest.fixture(scope="module")
def app(folder, environment):
    with app_server.run(folder, ["--training", "only", "--training_folder", str(folder)], **environment) as server:
        yield server
        assert not server.outside() and "Traceback" not in server.log()


@pytest.fixture
def page(app):
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: apt-get install chromium (issue 5)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(3 * SLOW * 1000)  # a training compiles several programs
        page.raised, page.asked = [], []
        page.on("pageerror", lambda error: page.raised.append(error))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(app.address)
        yield page
        assert not page.raised
        assert not [url for url in page.asked if not url.startswith((app.address, "data:", "blob:"))]


def test_a_run_is_that_of_the_command_line(folder, environment, page):
    page.wait_for_selector("#status >> text=No run yet")
    page.fill("#steps input", str(STEPS))
    page.fill("#every input", str(EVERY))
    page.fill("#caption textarea, #caption input", "dots")
    page.wait_for_function("document.querySelector('#command textarea').value.includes('caption=dots')")
    command = shlex.split(page.input_value("#command textarea"))
    assert command[:5] == ["uso-train", "--config", "finetune:mini", "--data", "mine"]

    page.click("#start")
    page.wait_for_selector("#losses .marks")  # a curve, while it runs
    page.wait_for_selector(f"#status >> text=of {STEPS}")
    page.click("#stop_training")
    page.wait_for_selector("#status >> text=Stopped")
    stopped = int(re.search(r"step (\d+) of", page.inner_text("#status"))[1])
    assert 0 < stopped < STEPS

    page.click("#resume")
    page.wait_for_selector("#status >> text=Finished")
    page.wait_for_selector(f"#grids >> text=step {STEPS}")
    page.click("#exports >> text=Export")
    for other in ("ComfyUI", "diffusers"):
        page.uncheck(f"#formats >> text={other}")
    page.click("#export")
    page.wait_for_selector("#exported >> text=dit_lora.safetensors")
    page.wait_for_selector("#files a >> nth=0")

    arguments = [argument.replace("runs/mine", "runs/typed") for argument in command[1:]]
    names = ("XLA_FLAGS", "JAX_PLATFORMS")
    same = dict(zip(names, (xla_flags.flags(), "cpu"), strict=True)) | environment
    subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments],
        cwd=folder, env=os.environ | same, check=True, capture_output=True,
    )  # fmt: skip
    convert(["export", str(folder / "runs" / "typed"), "--format", "uso", "--to", str(folder / "typed")])
    typed = load_file(folder / "typed" / "dit_lora.safetensors")
    made = load_file(folder / "runs" / "mine" / "adapter" / "dit_lora.safetensors")
    assert typed.keys() == made.keys() and len(made) >= 28
    for name, value in typed.items():
        np.testing.assert_array_equal(made[name], value)
