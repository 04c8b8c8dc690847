# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images of other programs under their own names, a table of several models in one command, notes on images."""

import csv
import json
import pathlib

import benchmark_fixtures as fixtures
import numpy as np
import pytest
from PIL import Image

from uso_jax.commands.evaluate import main
from uso_jax.common.errors import InputError
from uso_jax.evaluation import gallery
from uso_jax.evaluation import items as item
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.naming import Naming

ITEM = EvalItem("ink/a 1", "triplets", "ink", "a fox", ("/d/house.png",), ("/d/wave.jpg",), num_images=2)


@pytest.mark.parametrize(
    ("text", "folder", "first"),
    [
        ("out/images", "out/images", "ink/a 1_1.png"),
        ("omnigen2/fullset/{subset}/{name}.png", "omnigen2/fullset", "ink/a 1.png"),
        ("/t/{content}&&{style}_{number}", "/t", "house&&wave_1.png"),
        ("{index:04d}-{nth}.webp", ".", "0006-2.webp"),
        ("k/{line}_{prompt}/{key}.JPG", "k", "7_a fox/ink/a 1.JPG"),
    ],
)
def test_patterns(text, folder, first):
    found, naming = Naming.split(text)
    assert found == folder and naming.names(ITEM, 1, 6)[0] == first


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("x/{kye}.png", "the field {kye}; known fields: key, name"),
        ("x/{key.__class__}.png", "the field {key.__class__}"),
        ("x/{key", "no pattern of names"),
        ("x/{index:s}.png", "no pattern of names"),
    ],
)
def test_mistakes_in_patterns(pattern, message):
    with pytest.raises(InputError, match=message.replace("{", r"\{")):
        Naming.split(pattern)


def test_a_pattern_tells_images_apart():
    with pytest.raises(InputError, match=r"image 0 of 'ink/a 1' and image 1 of 'ink/a 1' alike"):
        Naming.of("{key}.png").check([ITEM], "--models x")
    Naming.of("{key}_{number}.png").check([ITEM], "--models x")


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


@pytest.fixture
def prepared(tmp_path):
    """Return a folder with OmniContext's items, and images of two programs under their own names."""
    (tmp_path / "data").mkdir()
    fixtures.omnicontext(tmp_path / "data")
    assert run("prepare", "omnicontext", "--data", tmp_path / "data", "--to", tmp_path, "--size", 16) == 0
    for index, one in enumerate(item.read_items(tmp_path, "omnicontext")):
        fixtures.image(tmp_path / "uso" / "images" / f"{one.key}.png")
        fixtures.image(tmp_path / "omnigen2" / "fullset" / one.subset / f"{one.key.rpartition('/')[2]}.png")
        fixtures.image(tmp_path / "klein" / f"{index:03d}.jpg")
    (tmp_path / "klein" / "grid.png").write_bytes((tmp_path / "klein" / "000.jpg").read_bytes())
    return tmp_path


@pytest.mark.slow  # writes a report
def test_a_table_of_several_models_is_one_command(prepared, capsys):
    models = [
        "uso",
        f"omnigen2={prepared}/omnigen2/fullset/{{subset}}/{{name}}.png",
        f"k={prepared}/klein/{{index:03d}}",
    ]
    assert run("table", "omnicontext", "--to", prepared, "--judge", "fake", "--models", *models) == 0, (
        capsys.readouterr()
    )
    with (prepared / "report.csv").open() as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert [rows[name]["from"] for name in ("uso", "omnigen2", "k")] == ["strict"] * 3
    assert len({rows[name]["PF"] for name in ("uso", "omnigen2", "k")}) > 1
    assert rows["USO"]["from"] == "published" and rows["USO"]["Single Char"] == "8.03"
    page = (prepared / "report.html").read_text()
    assert page.count("<img") > 3 * 5 and "image is missing" not in page
    # Five of eight tasks: the published code averages what is there, so that figure stands beside.
    assert rows["uso"]["Average (compat)"] and not rows["uso"]["Average"] and "compat: " in page
    assert "Average" in (prepared / "uso" / "summary.csv").read_text()
    told = json.loads((prepared / "k" / "summary.json").read_text())
    assert told["complete"] and told["naming"] == "{index:03d}" and told["extra"] == []  # grid.png is theirs
    capsys.readouterr()
    assert (
        run("score", "omnicontext", "--to", prepared, "--judge", "replay", "--model", "k", "--images", models[2][2:])
        == 0
    )
    assert "compat: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (["a={to}/gone/{{key}}.png"], "gone is not a folder of images"),
        (["a={to}/klein/x.png", "a=b"], "is not a folder of images"),
        (["a={to}/klein/{{subset}}", "uso"], ""),
        (["uso", "uso"], "pass each model once"),
        (["../a=b"], "--models '../a' names a folder"),
    ],
)
def test_mistakes_of_a_table(models, message, prepared, capsys):
    code = run(
        "table",
        "omnicontext",
        "--to",
        prepared,
        "--judge",
        "fake",
        "--models",
        *(m.format(to=prepared) for m in models),
    )
    if message:
        assert code == 2 and message in capsys.readouterr().err and not (prepared / "a" / "scores.jsonl").exists()
    else:
        assert code == 3  # images that are missing stand in the report


def test_images_that_other_programs_read_differently_are_noted(tmp_path):
    pixels, exif = np.zeros((8, 8, 3), np.uint8), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(tmp_path / "clear.png")
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    names = ("turned", "deep", "clear", "plain")
    items = [EvalItem(name, "triplets", width=8, height=8, target=str(tmp_path / "clear.png")) for name in names]
    found = gallery.find_images(tmp_path, items)
    shown = {what: [pathlib.Path(file).name for file in files] for what, files in found.notes.items()}
    assert shown == {"orientation": ["turned.jpg"], "depth": ["deep.png"], "transparency": ["clear.png"]}
