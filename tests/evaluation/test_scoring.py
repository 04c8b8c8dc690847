# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Items, images and the score log: invalid input, and recovery after an interruption."""

import json

import numpy as np
import pytest
from PIL import Image

from uso_jax.common.errors import InputError
from uso_jax.evaluation import benchmark, gallery, scoring
from uso_jax.evaluation import items as item
from uso_jax.evaluation.benchmark import Column
from uso_jax.evaluation.items import EvalItem
from uso_jax.evaluation.metrics.base import Metric, Tools
from uso_jax.evaluation.score_log import Failed, ScoreLog, Skipped


def image(path, size=(8, 8), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def make(key="a", **changes):
    return EvalItem(**({"key": key, "benchmark": "triplets", "width": 8, "height": 8} | changes))


def test_items_go_out_and_in(tmp_path):
    refs = image(tmp_path / "r.png"), image(tmp_path / "s.png")
    wanted = make("x/y", prompt="é", content_refs=refs[:1], style_refs=refs[1:], target=refs[0], meta={"n": [1]})
    item.write_items(tmp_path, [wanted])
    assert item.read_items(tmp_path, "triplets") == [wanted]
    line = {"key": "rel", "benchmark": "triplets", "content_refs": ["r.png"]}
    (tmp_path / item.FILE).write_text(json.dumps(line))
    assert item.read_items(tmp_path, "triplets")[0].content_refs == refs[:1]  # relative to the file


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"key": "a"}], "line 1 has no 'benchmark'"),
        ([{"key": "a", "benchmark": "mico"}], "benchmark 'mico', not 'triplets'"),
        ([{"key": "a", "benchmark": "triplets", "size": 3}], "unknown field 'size'"),
        ([{"key": "a", "benchmark": "triplets", "prompt": 3}], "prompt is 3"),
        ([{"key": "../a", "benchmark": "triplets"}], "'../a': the key"),
        ([{"key": "a", "benchmark": "triplets"}, {"key": "A", "benchmark": "triplets"}], "two items have the key 'a'"),
        ([], "no items"),
    ],
)
def test_wrong_items(tmp_path, lines, message):
    (tmp_path / item.FILE).write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        item.read_items(tmp_path, "triplets")


def test_a_missing_reference_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r"item 'a': image .*gone.png' does not exist"):
        item.write_items(tmp_path, [make(content_refs=(str(tmp_path / "gone.png"),))])
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_with_images_is_listed_by_item(tmp_path):
    keys = ("good", "two", "missing", "large", "half", "double", "free")
    items = [make(key, num_images=2 if key == "two" else 1) for key in keys[:-1]] + [make("free", width=0, height=0)]
    items[keys.index("half")] = make("half", width=64, height=64)
    image(tmp_path / "good.png"), image(tmp_path / "two_0.png"), image(tmp_path / "two_1.jpg")
    image(tmp_path / "large.png", (16, 8)), image(tmp_path / "free.png", (16, 8))
    image(tmp_path / "double.png"), image(tmp_path / "double_0.png")
    image(tmp_path / "half.png", (64, 64))
    data = (tmp_path / "half.png").read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "sub").mkdir()
    image(tmp_path / "sub" / "nobody.png")
    found = gallery.find_images(tmp_path, items)
    judge = lambda: scoring.score_images(
        [Metric("m", "counted")], items, found, ScoreLog(tmp_path / "s.jsonl"), Tools(), make=lambda *_: Counted()
    )
    assert judge().scored == {"m": 4}  # a header may be whole where the pixels are not
    assert [s.name for s in found.samples] == [("good", 0), ("two", 0), ("two", 1), ("free", 0)]
    assert found.problems["missing", 0] == "the image is missing"
    assert found.problems["large", 0] == "the image is 16 x 8, not 8 x 8"
    assert "half.png" in found.problems["half", 0] and "cannot be decoded" in found.problems["half", 0]
    assert "several images: double_0.png, double.png" in found.problems["double", 0]
    assert found.extra == ["sub/nobody.png"]
    assert ("large", 0) not in gallery.find_images(tmp_path, items, any_size=True).problems


# ---------------------------------------------------------------------------------------------------- the log


def test_the_log_grows_and_is_read_again(tmp_path):
    log = ScoreLog(tmp_path / "s.jsonl")
    log.append("m", [(("a", 0), "1", {"m": 0.5}), (("b", 0), "1", Skipped("no face")), (("c", 0), "1", Failed("busy"))])
    again = ScoreLog(tmp_path / "s.jsonl")
    for found in (log, again):
        assert found.get(("a", 0), "m", "1") == {"m": 0.5}
        assert found.get(("b", 0), "m", "1") == Skipped("no face")
        assert found.get(("c", 0), "m", "1") == Failed("busy")
        assert found.get(("a", 0), "m", "2") is None and found.get(("a", 1), "m", "1") is None


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path):
    path = tmp_path / "s.jsonl"
    ScoreLog(path).append("m", [(("a", 0), "1", {"m": 0.5}), (("b", 0), "1", {"m": 0.25})])
    path.write_bytes(path.read_bytes()[:-9])
    log = ScoreLog(path)
    assert log.get(("a", 0), "m", "1") == {"m": 0.5} and log.get(("b", 0), "m", "1") is None
    log.append("m", [(("b", 0), "1", {"m": 0.75})])
    assert ScoreLog(path).get(("b", 0), "m", "1") == {"m": 0.75}


def test_damage_elsewhere_is_told(tmp_path):
    (tmp_path / "s.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(InputError, match="line 1 is damaged"):
        ScoreLog(tmp_path / "s.jsonl")


# ---------------------------------------------------------------------------------------------------- scoring


class Counted:
    """A measure that records the images it scores, fails on request, and can be interrupted."""

    def __init__(self, identity="v1", fails=(), stop=None):
        self.identity, self.asked, self.fails, self.stop = {"v": identity}, [], fails, stop

    def __call__(self, samples):
        if self.stop is not None and len(self.asked) >= self.stop:
            raise KeyboardInterrupt
        self.asked += [sample.item.key for sample in samples]
        return [Failed("busy") if s.item.key in self.fails else {"m": float(len(s.item.key))} for s in samples]


def run(folder, items, measure, **options):
    log = ScoreLog(folder / "scores.jsonl")
    found = gallery.find_images(folder / "images", items)
    metric = Metric("m", "counted")
    return scoring.score_images([metric], items, found, log, Tools(), batch_size=2, make=lambda *_: measure, **options)


@pytest.fixture
def five(tmp_path):
    items = [make(f"i{'x' * n}", prompt=str(n)) for n in range(5)]
    for number, one in enumerate(items):
        image(tmp_path / "images" / f"{one.key}.png", seed=number)
    return tmp_path, items


def test_a_stopped_run_goes_on_and_asks_nothing_twice(five):
    folder, items = five
    first, second, third = Counted(stop=4), Counted(), Counted()
    with pytest.raises(KeyboardInterrupt):
        run(folder, items, first)
    scores = run(folder, items, second)
    assert first.asked == [one.key for one in items[:4]] and second.asked == [items[4].key]
    assert {name: v["m"] for name, v in scores.figures.items()} == {(one.key, 0): len(one.key) for one in items}
    assert run(folder, items, third).figures == scores.figures and third.asked == []


def test_what_changed_is_judged_again(five, monkeypatch):
    folder, items = five
    run(folder, items, Counted())
    image(folder / "images" / f"{items[1].key}.png", seed=99)
    gallery.file_digest.cache_clear(), gallery.pixels.cache_clear()
    changed = [items[0], items[1], make(items[2].key, prompt="another"), *items[3:]]
    measure = Counted()
    run(folder, changed, measure)
    assert measure.asked == [items[1].key, items[2].key]
    measure = Counted(identity="v2")
    run(folder, changed, measure)
    assert len(measure.asked) == 5


def test_failures_are_counted_and_tried_again(five):
    folder, items = five
    scores = run(folder, items, Counted(fails={items[0].key}))
    assert scores.failed == [("m", items[0].key, 0, "busy")] and (items[0].key, 0) not in scores.figures
    measure = Counted()
    scores = run(folder, items, measure)
    assert measure.asked == [items[0].key] and not scores.failed and len(scores.figures) == 5


def test_uso_bench_has_the_published_counts(tmp_path):
    for folder, count in (("content/human", 23), ("content/object", 30), ("style", 61)):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(count):
            image(tmp_path / folder / f"{number:02d}.png", (1, 1))
    items = benchmark.by_name("uso_bench").items(tmp_path, {})
    item.check_items(items, "here")
    images = {}
    for one in items:
        images[one.subset] = images.get(one.subset, 0) + one.num_images
    assert images == {"subject": 6000, "style": 6000, "combined_preserved": 2500, "combined_shifted": 2500}
    assert len({one.style_refs for one in items if one.style_refs}) == 50
    assert {one.prompt for one in items if one.subset == "combined_preserved"} == {""}
    assert len(benchmark.by_name("uso_bench").items(tmp_path, {"all_images": "yes"})) == 53 * 30 + 61 * 30 + 2 * 53 * 61


def test_columns_have_names_of_their_own():
    for name in benchmark.BENCHMARKS:
        found = benchmark.by_name(name)
        titles = [column.name for column in found.columns]
        assert len(set(titles)) == len(titles) and all(isinstance(column, Column) for column in found.columns)
        metrics = [metric.name for metric in found.metrics]
        assert len(set(metrics)) == len(metrics) and found.ours and found.name == name
        for model, row in found.published.items():
            assert set(row) <= set(titles), (name, model)
