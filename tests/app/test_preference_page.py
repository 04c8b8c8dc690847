# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The page on which a person chooses the better of two images: its choices, and the page in a real browser."""

import app_server
import judged_images
import pytest
from app_server import SLOW
from chromium import ARGUMENTS, CHROMIUM

from uso_jax.app.preference_page import Comparisons, Judged
from uso_jax.commands import app
from uso_jax.common.errors import InputError
from uso_jax.preferences.verdicts import Verdicts


@pytest.fixture
def comparisons(tmp_path):
    judged_images.write(tmp_path)
    return Comparisons(tmp_path)


def test_choices_are_kept_at_once_and_taken_back(comparisons):
    first = comparisons.next("a")
    second = comparisons.choose(first, "left", "a")
    assert second.shown != first.shown and len(second.choices) == 1
    (kept,) = Verdicts(comparisons.workdir).read()
    assert (kept.left, kept.right, kept.better) == (first.shown.left, first.shown.right, "left")
    assert comparisons.undo(second) == first and Verdicts(comparisons.workdir).read() == []
    with pytest.raises(InputError, match="no choice"):
        comparisons.undo(first)


def test_another_session_is_not_asked_the_same(comparisons):
    state, other = comparisons.next("a"), comparisons.next("b")
    for _ in range(20):
        state = comparisons.choose(state, "neither", "a")
        other = comparisons.choose(other, "right", "b")
    assert state.shown is other.shown is None  # 12 pairs, of which both were asked about one when they began at most
    assert len({verdict.pair for verdict in Verdicts(comparisons.workdir).read()}) == 12
    assert comparisons.choose(Judged(), "left", "a") == Judged()


def test_a_run_without_images_is_refused(tmp_path):
    with pytest.raises(InputError, match="no roll-outs to compare"):
        Comparisons(tmp_path)


@pytest.mark.parametrize("flags, words", [(["--training", "on"], "leave out"), ([], "no roll-outs to compare")])
def test_flags(tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit) as end:
        app.main(["--preferences", str(tmp_path), *flags])
    assert end.value.code == 2 and words in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- browser


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    judged_images.write(folder)
    with app_server.run(folder, ["--preferences", str(folder)]) as server:
        yield server
        assert not server.outside() and "Traceback" not in server.log()


@pytest.fixture
def page(server):
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: apt-get install chromium (issue 5)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.set_default_timeout(SLOW * 1000)
        raised, asked = [], []
        page.on("pageerror", lambda error: raised.append(error))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server.address)
        yield page
        assert not raised
        assert not [url for url in asked if not url.startswith((server.address, "data:", "blob:"))]


@pytest.mark.slow
def test_buttons_and_keys(server, page):
    kept = lambda: [verdict.better for verdict in Verdicts(server.folder).read()]
    told = lambda number: page.wait_for_selector(f"#prefer_status >> text=Pairs judged: {number},")
    page.wait_for_selector("#prefer_image_left img")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    sides = [page.locator(f"#prefer_image_{side} img").bounding_box() for side in ("left", "right")]
    assert sides[0]["y"] == sides[1]["y"] and sides[0]["x"] + sides[0]["width"] <= sides[1]["x"]
    told(0)
    page.click("#prefer_left")
    told(1)
    for number, key in enumerate("123", 2):
        page.keyboard.press(key)
        told(number)
    assert kept() == ["left", "left", "neither", "right"]
    before = page.get_attribute("#prefer_image_left img", "src")
    page.keyboard.press("u")
    told(3)
    assert kept() == ["left", "left", "neither"]
    assert page.get_attribute("#prefer_image_left img", "src") != before
    page.evaluate("for (const name of ['left', 'right']) document.getElementById(`prefer_${name}`).click()")
    told(4)
    page.reload()
    told(4)  # the second press was for a pair that was no longer shown
    assert kept() == ["left", "left", "neither", "left"]
