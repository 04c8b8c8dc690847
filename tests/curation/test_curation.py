# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Curation from stylised images to an exported data set: resuming, thresholds, and failures of the judge."""

import dataclasses
import io
import itertools
import json
import runpy
import shutil

import fake_vlm
import numpy as np
import pytest
import tiny
from PIL import Image

from uso_jax.common.errors import InputError
from uso_jax.common.schema import override
from uso_jax.curation import captions, report, selection, steps
from uso_jax.curation.config import KeepConfig
from uso_jax.curation.experts import Expert
from uso_jax.curation.part_judge import read_parts
from uso_jax.curation.store import Folder
from uso_jax.curation.truth import Truth
from uso_jax.data.drawings.source import ProceduralSource
from uso_jax.data.drawings.styles import render
from uso_jax.data.drawings.subjects import SUBJECTS
from uso_jax.data.sources import open_source
from uso_jax.data.tfds.records import TripletSet
from uso_jax.data.tfds.writer import prepare

_CONFIG = runpy.run_path(str(tiny.ROOT / "configs" / "curation.py"))["get_config"]
DRAWN = dict(name="procedural", size=32, length=4, seed=3)
ANY = dict(style=None, subject=None, judge=None, duplicates=-1)


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


def config(**changes):
    values = {"score.batch_size": 4, "shard_size": 2, "limit": 0}
    for name in ("stylize", "destylize"):
        values |= {f"{name}.weights": str(tiny.MINI32), f"{name}.batch_size": 4, f"{name}.settings": dict(num_steps=1)}
    vlm = dict(model="judge", backoff=0.001, timeout=0.2, tries=2, takes=2, threads=2)
    values |= {f"vlm.{name}": value for name, value in vlm.items()}
    values |= {path.replace("__", "."): value for path, value in changes.items()}
    return override(_CONFIG("mini").curation, values)


def keep(**changes):
    return KeepConfig(**ANY | changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Curate four drawings, including scores and truth."""
    path = tmp_path_factory.mktemp("curation")
    for step in ("captions", "stylize", "destylize", "score", "truth"):
        steps.run_step(step, config(), DRAWN, path)
    return Folder(path)


def copy(folder, path):
    """Return a copy of a curation that a test may modify."""
    shutil.copytree(folder.path, path)
    return Folder(path)


def test_candidates(made):
    rows = made.all_rows("captions")
    assert [(row["index"], row["layout"]) for row in rows.values()] == list(
        itertools.product(range(4), ("preserved", "shifted"))
    )
    source = open_source(DRAWN)
    assert np.array_equal(made.target(rows[5]).decode(), source[2].target)
    assert rows[5]["caption"] == source[2].meta["phrase"]
    drawn = {number: made.all_rows("stylize")[number]["prompt"] for number in rows}
    captions_of = lambda index: source[index].meta["phrase"]
    assert all(prompt == captions_of(rows[n]["index"] ^ 1) for n, prompt in drawn.items())  # the other of its shard
    asked = [row["prompt"] for row in made.all_rows("destylize").values()]
    assert asked[:2] == [captions_of(0), f"{captions_of(0)} in another place"]
    images = [made.place(step, n).decode() for step in ("stylize", "destylize") for n in rows]
    assert all(a.shape == (32, 32, 3) for a in images)
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(images, 2))
    assert all(-1 <= row[name] <= 1 for row in made.all_rows("score").values() for name in ("style", "subject"))


def test_a_stopped_step_goes_on_and_gives_the_same(made, tmp_path):
    folder = copy(made, tmp_path / "c")
    before = [(folder.path / "stylize" / f"{shard:05d}.tar").read_bytes() for shard in range(2)]
    scores = (folder.path / "score" / "00001.jsonl").read_text()
    for name in ("stylize/00001.jsonl", "stylize/00001.tar"):
        (folder.path / name).unlink()
    kept = (folder.path / "stylize" / "00000.tar").stat().st_mtime_ns
    with pytest.raises(InputError, match=r"lacks shard 00001 of stylize: run curate\.py stylize first"):
        folder.rows("stylize", 1)
    steps.run_step("stylize", config(), DRAWN, folder.path)
    assert [(folder.path / "stylize" / f"{shard:05d}.tar").read_bytes() for shard in range(2)] == before
    assert (folder.path / "stylize" / "00000.tar").stat().st_mtime_ns == kept
    # What was made of the replaced images is made anew.
    assert folder.is_done("score", 0) and not folder.is_done("score", 1)
    steps.run_step("score", config(), DRAWN, folder.path)
    assert (folder.path / "score" / "00001.jsonl").read_text() == scores


def test_processes_share_the_shards(tmp_path):
    for process in ((1, 2), (0, 2)):
        steps.run_step("captions", config(), DRAWN, tmp_path, process=process)
        assert Folder(tmp_path).is_done("captions", 0) is (process == (0, 2))
    assert len(Folder(tmp_path).all_rows("captions")) == 8


def test_other_settings_are_refused(made, tmp_path):
    with pytest.raises(InputError, match=r"holds another curation \(source differ"):
        steps.run_step("captions", config(), DRAWN | {"seed": 4}, made.path)
    with pytest.raises(InputError, match=r"stylize was made with other settings \(settings differ\): delete"):
        steps.run_step("stylize", config(stylize__settings=dict(num_steps=2)), DRAWN, made.path)
    with pytest.raises(InputError, match=r"lacks the step stylize: run curate\.py stylize first"):
        steps.run_step("captions", config(), DRAWN, tmp_path)
        steps.run_step("score", config(), DRAWN, tmp_path)
    with pytest.raises(InputError, match=r"set --config\.curation\.stylize\.weights"):
        Expert("stylize", config(stylize__weights=""))
    with pytest.raises(InputError, match="holds no curation"):
        Folder(tmp_path / "nothing")
    with pytest.raises(InputError, match="clip_text compares with prompt, not with style"):
        config(score__style="clip_text")
    with pytest.raises(InputError, match="layouts is"):
        config(layouts=("sideways",))


# ---------------------------------------------------------------------------------------------------- the judge


def judged(folder, reply, retry=False, style=None, **changes):
    """Run the judge against an endpoint; return its rows and the number of requests."""
    with fake_vlm.serve(reply) as endpoint:
        chosen = config(vlm__base_url=endpoint.url, **changes)
        chosen = dataclasses.replace(chosen, keep=keep(judge=3.0, style=style))
        steps.run_step("judge", chosen, DRAWN, folder.path, retry=retry)
        return folder.all_rows("judge"), len(endpoint.asked)


GOOD = '```json\n{"parts": {"head": 4, "tail": 3}}\n```'


def test_judge(made, tmp_path):
    folder = copy(made, tmp_path / "c")
    rows, asked = judged(folder, lambda body: GOOD)
    assert asked == 8 and all(row["judge"] == 3.5 and row["parts"] == {"head": 4, "tail": 3} for row in rows.values())
    left = lambda least: selection.survivors(selection.decide(folder, keep(judge=least)), keep(judge=least))
    assert len(left(3.5)["judge"]) == 8 and not left(3.6)["judge"] and "judge" not in left(None)
    # From the cache alone, without an endpoint.
    for file in (folder.path / "judge").glob("*.jsonl"):
        if not file.name.startswith("answers"):
            file.unlink()
    chosen = dataclasses.replace(config(), keep=keep(judge=3.0))
    steps.run_step("judge", chosen, DRAWN, folder.path)
    assert folder.all_rows("judge") == rows


def test_a_judge_that_fails_makes_no_scores(made, tmp_path):
    folder = copy(made, tmp_path / "c")
    turn = itertools.cycle(["It looks great, 4 out of 4!", 0.5, (429, {}, {}), '{"parts": {"head": 7}}'])
    rows, _ = judged(folder, lambda body: next(turn), vlm__threads=1)
    assert all("judge" not in row and "failed" in row for row in rows.values())
    kinds = {row["failed"].split(":")[0] for row in rows.values()}
    assert "nonsense" in kinds and kinds <= {"nonsense", "timeout", "busy"}
    decisions = selection.decide(folder, keep(judge=0.0))
    assert {one.failed_at for one in decisions} == {"judge"} and decisions[0].reason.startswith("judge: ")
    # What failed is not asked again by itself, only if it is wished.
    assert judged(folder, lambda body: GOOD) == (rows, 0)
    again, asked = judged(folder, lambda body: GOOD, retry=True)
    assert asked == sum("nonsense" not in row["failed"] for row in rows.values())
    for number, row in again.items():
        assert ("judge" in row) is ("nonsense" not in rows[number]["failed"])


def test_the_key_is_in_no_file_of_a_curation(made, tmp_path, monkeypatch, capfd):
    secret = "sk-planted-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    folder = copy(made, tmp_path / "c")
    turn = itertools.cycle([(400, {"error": f"bad key {secret}"}, {}), f"not the form {secret}", GOOD])
    rows, _ = judged(folder, lambda body: next(turn), vlm__threads=1)
    assert any("bad key [key]" in row.get("failed", "") for row in rows.values())
    assert any("judge" in row for row in rows.values())
    written = [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert not written and secret not in "".join(capfd.readouterr())


def test_only_what_passes_the_networks_is_judged(made, tmp_path):
    folder = copy(made, tmp_path / "c")
    scores = {number: row["style"] for number, row in folder.all_rows("score").items()}
    middle = float(np.median(list(scores.values())))
    run = lambda least: judged(folder, lambda body: GOOD, style=least)
    rows, asked = run(middle)
    assert asked == 4 and {n for n, row in rows.items() if "judge" in row} == {
        n for n, s in scores.items() if s >= middle
    }
    with pytest.raises(InputError, match=r"was not judged, since .*: run curate\.py judge"):
        selection.decide(folder, keep(judge=3.0))
    rows, asked = run(-1.0)
    assert asked == 4 and all("judge" in row for row in rows.values())


def test_a_judge_that_is_away_stops_the_step(made, tmp_path):
    folder = copy(made, tmp_path / "c")
    with pytest.raises(InputError, match=r"did not answer 3 questions in a row.*run the same command again"):
        judged(folder, lambda body: (503, {}, {}), vlm__max_failures=3, vlm__threads=1)
    assert not folder.is_done("judge", 1)
    with pytest.raises(InputError, match="check the key"):
        judged(folder, lambda body: (401, {}, {}))
    with pytest.raises(InputError, match=r"set --config\.curation\.vlm\.model"):
        steps.run_step("judge", config(vlm__model=""), DRAWN, folder.path)


@pytest.mark.parametrize(
    "answer",
    ["", "4", "{", '{"parts": {}}', '{"parts": [4]}', '{"score": 4}', '{"parts": {"a": "4"}}', '{"parts": {"a": true}}',
     '{"parts": {"a": 5}}', '{"parts": {"a": -1}}', '{"parts": {"a": NaN}}', "[" * 5000, '{"parts": {"a": null}} {}'],
)  # fmt: skip
def test_nonsense_is_no_score(answer):
    with pytest.raises(ValueError):
        read_parts(answer)


# ---------------------------------------------------------------------------------------------------- selection


def test_thresholds_change_without_recomputing(made, tmp_path):
    folder = copy(made, tmp_path / "c")
    files = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*") if path.is_file()}
    scores = folder.all_rows("score")
    for least in (-1.0, float(np.median([row["style"] for row in scores.values()])), 1.1):
        decisions = report.write_report(folder, keep(style=least))
        kept = [one.number for one in decisions if not one.failed_at]
        assert kept == [n for n, row in scores.items() if row["style"] >= least]
        lines = (folder.path / "report" / "decisions.jsonl").read_text().splitlines()
        assert [json.loads(line)["failed_at"] == "" for line in lines] == [n in kept for n in scores]
        page = (folder.path / "report" / "index.html").read_text()
        assert page.count("<article") == len(scores) and "default-src 'none'" in page
    assert all(path.stat().st_mtime_ns == when for path, when in files.items())
    with pytest.raises(InputError, match="no candidate is kept"):
        selection.kept(folder, decisions)


def test_precision_and_export(made, tmp_path):
    decisions = selection.decide(made, keep())
    known = report.precision(made, keep(), decisions)
    assert known["made"].count == 8 and 0 <= known["made"].both <= known["made"].style <= 1
    assert "| references made | 8 |" in report.markdown(made, keep(), decisions)
    chosen = [one for one in decisions if one.number != 3]
    path = prepare({"train": selection.kept(made, chosen)}, tmp_path, "curated")
    kept, source = TripletSet(path), open_source(DRAWN)
    assert len(kept) == 7 and [kept[i].layout for i in range(3)] == ["preserved", "shifted", "preserved"]
    assert kept[0].prompt == "" and kept[1].prompt == source[0].meta["phrase"]
    assert np.array_equal(kept[4].target, source[2].target) and kept[4].task == "style_subject"
    assert np.array_equal(kept[4].content, made.place("destylize", 5).decode())
    assert np.array_equal(kept[4].styles[0], made.place("stylize", 5).decode())
    assert kept[4].meta["scores"]["style"] == made.all_rows("score")[5]["style"]


def test_near_duplicates():
    source = ProceduralSource(length=40)
    images = [source[i].target for i in range(40)]
    hashes = selection._Hashes(4)
    for index, image in enumerate(images):
        text = captions.fingerprint(image)
        assert hashes.find(text, index) is None, "different drawings are no duplicates"
        hashes.add(text, index)
    buffer = io.BytesIO()
    for index, image in enumerate(images[:10]):
        Image.fromarray(image).resize((96, 96), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=80)
        again = captions.fingerprint(np.asarray(Image.open(buffer).convert("RGB")))
        assert hashes.find(again, 100) == index and hashes.find(again, index) is None
        other = captions.fingerprint(255 - image.astype(np.uint8)[:, :, [1, 2, 0]])
        assert hashes.find(other, 100) is None, "the same shapes in other colours are another image"
        buffer.seek(0), buffer.truncate()
    assert selection._Hashes(-1).find(captions.fingerprint(images[0]), 0) is None


# ---------------------------------------------------------------------------------------------------- captions, inputs


def test_unreadable_images_are_listed(tmp_path):
    for name in "ab":
        noise = np.random.default_rng(ord(name)).integers(0, 256, (16, 24, 3)).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    items = [dict(prompt=f"a {n}", target=f"{n}.png") for n in ("a", "cut", "b", "gone")]
    (tmp_path / "items.json").write_text(json.dumps(items))
    spec = dict(name="json", path=str(tmp_path / "items.json"))
    folder = steps.run_step("captions", config(), spec, tmp_path / "out")
    rows = folder.all_rows("captions")
    assert [row["failed"].split()[0] for n, row in rows.items() if row["index"] % 2] == ["unreadable:"] * 4
    assert "cut.png" in rows[2]["failed"] and "gone.png" in rows[6]["failed"]
    assert rows[4]["caption"] == "a b" and folder.target(rows[4]).file == str(tmp_path / "b.png")
    assert not list((tmp_path / "out" / "captions").glob("*.tar"))  # images that are files are not copied


def test_captions_by_a_model(tmp_path):
    says = lambda body: '"A red kite\n over  hills."' if len(fake_vlm.images_of(body)) == 1 else "?"
    with fake_vlm.serve(says) as endpoint:
        rows = steps.run_step(
            "captions", config(captions="vlm", vlm__base_url=endpoint.url), DRAWN, tmp_path / "a"
        ).all_rows("captions")
        assert {row["caption"] for row in rows.values()} == {"A red kite over hills"}
    with fake_vlm.serve(lambda body: "{}") as endpoint:
        rows = steps.run_step(
            "captions", config(captions="vlm", vlm__base_url=endpoint.url), DRAWN, tmp_path / "b"
        ).all_rows("captions")
    assert all(row["caption"] == "" and row["failed"].startswith("caption: nonsense") for row in rows.values())


# ---------------------------------------------------------------------------------------------------- the truth


@pytest.mark.slow
def test_truth_knows_right_from_wrong():
    source = ProceduralSource(length=4, seed=5)
    truth = Truth(source)
    right, wrong = [], []
    for index in range(4):
        triplet, other = source[index], source[(index + 1) % 4]
        pose = triplet.meta["pose"]
        for rows, shown in ((right, triplet), (wrong, other)):
            plain = render(SUBJECTS[shown.meta["subject"]], pose, shown.meta["content_style"], 32)
            rows.append(truth.judge_candidate(index, "preserved", shown.styles[0], plain))
    share = lambda rows, name: np.mean([row[name] for row in rows])
    assert share(right, "style_right") >= 3 / 4 and share(right, "content_right") >= 3 / 4
    assert share(wrong, "style_right") == 0 and share(wrong, "content_right") == 0
    with pytest.raises(InputError, match="needs the source procedural or emoji"):
        Truth([])
