# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`python scripts/evaluate.py` on five items of every benchmark: killed, resumed, reported; and how mistakes end."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import benchmark_fixtures as fixtures
import pytest
import tiny
from PIL import Image

from uso_jax.commands.evaluate import main
from uso_jax.evaluation import gallery, score_log
from uso_jax.evaluation import items as item
from uso_jax.evaluation.benchmark import MODULES, by_name

pytestmark = pytest.mark.slow  # compiles or runs whole programs

SCRIPT = tiny.ROOT / "scripts" / "evaluate.py"


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    fixtures.networks(folder)
    return folder


def run(*arguments) -> int:
    """Run a stage here; give its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


def prepare(name: str, folder: pathlib.Path) -> list[item.EvalItem]:
    """Make a benchmark's data, prepare five or so items and draw an image of each."""
    data = folder / "data"
    data.mkdir()
    fixtures.MAKE[name](data)
    options = fixtures.OPTIONS.get(name, [])
    # AlexNet sees nothing in less than 35 pixels.
    size = {"viton_hd": 64, "fashion130k": 64, "triplets": 48}.get(name, fixtures.SIDE)
    assert run("prepare", name, "--data", data, "--to", folder, "--size", size, *options, "--limit", 5) == 0
    items = item.read_items(folder, name)[:8]
    item.write_items(folder, items)
    for one in items:
        for number in range(one.num_images):
            size = (one.width, one.height) if one.width else (fixtures.SIDE, fixtures.SIDE)
            fixtures.image(folder / "m" / "images" / f"{one.key}_{number}.png", size)
    return items


def score_arguments(name: str, folder: pathlib.Path, weights: pathlib.Path, items) -> list:
    images = [str(path) for path in (folder / "m" / "images").rglob("*.png")]
    files = images + [path for one in items for path in one.references]
    fixtures.faces(folder / "faces.npz", files)
    fixtures.texts(folder / "texts.json", images)
    found = ["score", name, "--to", folder, "--model", "m", "--metric_weights", weights, "--batch_size", 2, "--judge"]
    found += ["fake", "--faces", folder / "faces.npz", "--texts", folder / "texts.json"]
    if name == "mini":
        found += ["--metrics", "truth,csd,dino,clip_i"]
    return found


@pytest.mark.parametrize("name", MODULES)
def test_every_benchmark_is_stopped_resumed_and_reported(name, tmp_path, weights, monkeypatch, capsys):
    items = prepare(name, tmp_path)
    assert len(items) >= 5
    arguments = score_arguments(name, tmp_path, weights, items)
    log, append, count = tmp_path / "m" / "scores.jsonl", score_log.ScoreLog.append, iter(range(10_000))

    def stopping(self, *given):
        append(self, *given)
        if next(count) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(score_log.ScoreLog, "append", stopping)
    with pytest.raises(SystemExit, match="130"):
        main([str(argument) for argument in arguments])
    monkeypatch.setattr(score_log.ScoreLog, "append", append)
    kept = log.read_bytes()
    assert 1 <= kept.count(b"\n") < 12
    log.write_bytes(kept[:-5])  # as a kill in the middle of writing leaves it
    assert run(*arguments) == 0, (capsys.readouterr(), json.loads((tmp_path / "m" / "summary.json").read_text()))
    assert log.read_bytes().startswith(kept.rsplit(b"\n", 2)[0])
    resumed = json.loads((tmp_path / "m" / "summary.json").read_text())
    log.unlink()
    assert run(*arguments) == 0
    whole = json.loads((tmp_path / "m" / "summary.json").read_text())
    for found in (resumed, whole):
        found.pop("date"), found.pop("judge")
    assert resumed == whole and whole["complete"] and whole["table"]
    benchmark = by_name(name)
    wanted = {metric.name for metric in benchmark.metrics} if name != "mini" else {"truth", "csd", "dino"}
    assert wanted <= whole["metrics"].keys()
    assert all(metric["identity"] for metric in whole["metrics"].values())
    assert run("report", name, "--to", tmp_path) == 0
    page = (tmp_path / "report.html").read_text()
    assert benchmark.title in page and page.count("<article") == len(items)
    for note in benchmark.ours:
        assert note.split("'")[0][:30] in page
    with (tmp_path / "report.csv").open() as file:
        lines = list(csv.reader(file))
    assert lines[1][:2] == ["m", "strict"] and len(lines) == 2 + len(benchmark.published)


def test_a_killed_process_is_resumed(tmp_path, weights):
    items = prepare("mico", tmp_path)
    arguments = [str(a) for a in score_arguments("mico", tmp_path, weights, items)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tiny.ROOT)}
    log = tmp_path / "m" / "scores.jsonl"
    with subprocess.Popen([sys.executable, SCRIPT, *arguments], env=environment, stderr=subprocess.DEVNULL) as process:
        while not (log.exists() and log.stat().st_size) and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    known = log.read_bytes().count(b"\n")
    assert known
    assert run(*arguments) == 0
    assert json.loads((tmp_path / "m" / "summary.json").read_text())["complete"]
    keys = [(line["key"], line["metric"]) for line in map(json.loads, log.read_text().splitlines())]
    assert len(keys) == len(set(keys)) == 2 * len(items)  # nothing was judged twice


def test_what_is_wrong_stands_in_the_report_and_the_exit_code(tmp_path, weights, capsys):
    items = prepare("triplets", tmp_path)
    folder = tmp_path / "m" / "images"
    (folder / f"{items[0].key}_0.png").unlink()
    Image.new("RGB", (40, 48)).save(folder / f"{items[1].key}_0.png")
    half = folder / f"{items[2].key}_0.png"
    half.write_bytes(half.read_bytes()[:150])
    fixtures.image(folder / "stranger.png")
    gallery.pixels.cache_clear(), gallery.file_digest.cache_clear()
    arguments = score_arguments("triplets", tmp_path, weights, items)
    assert run(*arguments) == 3
    assert "incomplete: 3 missing or bad, 1 extra, 0 not judged" in capsys.readouterr().err
    told = json.loads((tmp_path / "m" / "summary.json").read_text())
    reasons = {one["key"]: one["reason"] for one in told["problems"]}
    assert reasons[items[0].key] == "the image is missing"
    assert reasons[items[1].key] == "the image is 40 x 48, not 48 x 48"
    assert "cannot be decoded" in reasons[items[2].key] and told["extra"] == ["stranger.png"]
    assert told["table"]["CLIP score"]["n"] == len(items) - 3 and not told["complete"]
    assert run("report", "triplets", "--to", tmp_path) == 3
    page = (tmp_path / "report.html").read_text()
    assert "stranger.png" in page and "40 x 48, not 48 x 48" in page and "incomplete" in page
    assert run(*arguments, "--any_size") == 3
    assert len(json.loads((tmp_path / "m" / "summary.json").read_text())["problems"]) == 2


class Babbling:
    """A judge that cannot be read, or does not answer, now and then."""

    name = "babbling"

    def __init__(self, replies):
        self.replies, self.asked = replies, 0

    def __call__(self, turns, *, round_, parameters):
        from uso_jax.vlm.judges import NoAnswer

        self.asked += 1
        reply = self.replies(self.asked, turns[-1].parts[0])
        if reply is None:
            raise NoAnswer("timeout")
        return reply


def judged(monkeypatch, vlm):
    from uso_jax.vlm import judges

    monkeypatch.setattr(judges, "FakeJudge", lambda: vlm)


def test_judge_errors_are_listed_by_item_and_asked_again(tmp_path, weights, monkeypatch):
    items = prepare("omnicontext", tmp_path)
    arguments = score_arguments("omnicontext", tmp_path, weights, items)
    last = items[-1].prompt
    judged(monkeypatch, Babbling(lambda n, prompt: None if last in prompt else '{"score": 9}'))
    assert run(*arguments) == 3
    told = json.loads((tmp_path / "m" / "summary.json").read_text())
    assert [(one["key"], one["metric"], one["reason"]) for one in told["problems"]] == [
        (items[-1].key, "judged", "judge: timeout")
    ]
    assert told["metrics"]["judged"]["failed"] == 1 and told["table"]["Single Char"]["value"] == 9
    healthy = Babbling(lambda n, prompt: '{"score": 4}')
    judged(monkeypatch, healthy)
    assert run(*arguments) == 0 and healthy.asked == 2
    told = json.loads((tmp_path / "m" / "summary.json").read_text())
    assert told["complete"] and told["judge"]["model"] == "babbling" and told["judge"]["from"]
    # Everything is kept: without the judge the same comes out.
    (tmp_path / "m" / "scores.jsonl").unlink()
    arguments[arguments.index("fake")] = "replay"
    assert run(*arguments) == 0
    assert json.loads((tmp_path / "m" / "summary.json").read_text())["table"] == told["table"]


def test_unreadable_answers_strict_and_compat(tmp_path, weights, monkeypatch):
    items = prepare("omnicontext", tmp_path)
    arguments = score_arguments("omnicontext", tmp_path, weights, items)
    strict = Babbling(lambda n, prompt: "I would rather not say")
    judged(monkeypatch, strict)
    assert run(*arguments) == 3
    told = json.loads((tmp_path / "m" / "summary.json").read_text())
    assert len(told["problems"]) == 5 and "cannot be read" in told["problems"][0]["reason"] and not told["table"]
    assert strict.asked == 30  # both scores, three times an item: the official figure needs both
    compat = Babbling(lambda n, prompt: "I would rather not say")
    judged(monkeypatch, compat)
    (tmp_path / "m" / "judge.jsonl").unlink()
    assert run(*arguments, "--compat") == 0
    told = json.loads((tmp_path / "m" / "summary.json").read_text())
    assert compat.asked == 30 and told["mode"] == "compat" and told["complete"] and told["table"]


def test_generate_makes_what_is_missing(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    fixtures.uso_bench(data)
    assert run("prepare", "uso_bench", "--data", data, "--to", tmp_path, "--size", 16, "--limit", 1) == 0
    arguments = ["generate", "uso_bench", "--to", tmp_path, "--model", "mini", "--num_steps", 1, "--batch_size", 4]
    assert run(*arguments) == 0
    items = item.read_items(tmp_path, "uso_bench")
    found = gallery.find_images(tmp_path / "mini" / "images", items)
    assert len(found.samples) == sum(one.num_images for one in items) == 10 and not found.problems and not found.extra
    found.samples[3].path.unlink()
    capsys.readouterr()
    assert run(*arguments) == 0
    assert "1 images made, 9 were finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "nothing", "--data", ".", "--to", "x"], "unknown benchmark 'nothing'"),
        (["prepare", "mico", "--data", "gone", "--to", "x"], "--data gone does not exist; MICo-Bench needs the four"),
        (["prepare", "mico", "--data", ".", "--to", "x"], "mico_bench_object_centric.jsonl does not exist"),
        (["prepare", "mini", "--data", "x", "--to", "x", "--option", "c=1"], "mini has no option 'c'"),
        (["score", "mico", "--to", "gone"], "items.jsonl does not exist"),
        (["score", "mico", "--to", "x", "--model", "../m"], "--model '../m' names a folder in --to"),
    ],
)
def test_mistakes(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "metric 'clip' needs a weights directory of networks (--metric_weights)"),
        (["--metric_weights", "mini"], "has no clip_model, only"),
        (["--metrics", "clipp"], "triplets has no metric 'clipp'"),
        (["--metrics", "lpips", "--images", "gone"], "gone is not a folder of images"),
        (["--metrics", "lpips", "--faces", "gone.npz"], "gone.npz is not a readable .npz file"),
        (["--metrics", "lpips", "--texts", "gone.json"], "gone.json is not readable JSON"),
        (
            ["--metrics", "lpips", "--judge", "gpt"],
            "--judge 'gpt' is unknown",
        ),
        (["--metrics", "lpips", "--judge", "replay"], "answers of one judge, not of 0"),
    ],
)
def test_mistakes_of_scoring(more, message, tmp_path, capsys):
    prepare("triplets", tmp_path)
    assert run("score", "triplets", "--to", tmp_path, "--model", "m", *more) == 2
    assert message in capsys.readouterr().err
