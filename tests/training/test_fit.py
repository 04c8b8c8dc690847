# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Whole runs: their products, stopping and resuming anywhere, and everything that can go wrong."""

import contextlib
import json
import resource
import time

import pytest
import tiny
from comparison import assert_same
from PIL import Image
from training_runs import (
    EVENT_LOOP_IS_CLOSED,
    Straight,
    Watch,
    config,
    files,
    interrupt,
    json_data,
    metrics,
    watched,
    without_times,
)

from uso_jax.common.errors import InputError
from uso_jax.training.fit import fit

pytestmark = [pytest.mark.slow, EVENT_LOOP_IS_CLOSED]  # compiles or runs whole programs
PROJECTOR = "transformer/feature_embedder/"


@pytest.fixture(scope="module", autouse=True)
def cheap_compilation(compiled):
    yield from tiny.compile_cheaply(compiled)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Run both stages without a stop."""
    workdir = tmp_path_factory.mktemp("straight")
    with watched() as watch:
        return Straight(workdir, fit(config(), workdir), watch)


# ---------------------------------------------------------------------------------------------------- products


def test_summary(straight):
    assert json.loads((straight.workdir / "summary.json").read_text()) == straight.summary
    stages = straight.summary["stages"]
    assert [(stage["name"], stage["steps"]) for stage in stages] == [("style_alignment", 4), ("joint", 4)]
    for stage in stages:
        assert set(stage) == {"name", "steps", "seconds", "heldout_loss_before", "heldout_loss_after"}
        assert stage["seconds"] > 0
        assert 0 < stage["heldout_loss_after"] != stage["heldout_loss_before"] > 0


def test_sample_grids(straight):
    sizes = {}
    for path in (straight.workdir / "samples").iterdir():
        with Image.open(path) as image:
            assert image.format == "PNG"
            sizes[path.name] = image.size
    size = lambda columns, rows: (6 + columns * 134, 22 + 6 + rows * 134)
    assert sizes == {"000004_style_alignment.png": size(3, 2), "000008_joint.png": size(4, 2)}


def test_metrics(straight):
    lines = metrics(straight.workdir)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [line["step"] for line in lines if "heldout_loss" in line] == [3, 4, 7, 8]
    assert {line["stage"] for line in lines if line["step"] > 4} == {"joint"}
    assert lines[-1]["heldout_loss"] == straight.summary["stages"][1]["heldout_loss_after"]
    (board,) = (straight.workdir / "tensorboard").iterdir()
    assert board.name.startswith("events.out.tfevents") and board.stat().st_size > 500


def test_checkpoints_hold_what_is_trained_and_nothing_else(straight):
    saved = straight.watch.saved
    assert sorted(saved) == [2, 4, 6, 8]
    assert sorted(path.name for path in (straight.workdir / "checkpoints").iterdir()) == ["6", "8"]
    for arrays in saved.values():
        assert all(path.startswith(PROJECTOR) or "/processor/" in path for path in arrays["params"])
    # The first stage trains the projector alone; the adapters it saves are those it started from.
    assert all(path.startswith(PROJECTOR) for path in saved[4]["ema"])
    adapters = [path for path in saved[2]["params"] if "/processor/" in path]
    assert_same(*({path: saved[step]["params"][path] for path in adapters} for step in (2, 4)))
    assert set(saved[8]["ema"]) == set(saved[8]["params"])


# ---------------------------------------------------------------------------------------------------- resuming


def test_stopped_and_resumed_equals_straight(straight, tmp_path):
    # Three stops: inside the first stage, after its end but before the second's first checkpoint, inside the second.
    resume = 0
    for stop, last in ((4, 2), (6, 4), (8, 6)):
        with watched(interrupt(stop - resume)) as watch, pytest.raises(KeyboardInterrupt):
            fit(config(), tmp_path)
        assert watch.batches == straight.watch.batches[resume : stop - 1]
        for step, arrays in watch.saved.items():
            assert_same(arrays, straight.watch.saved[step])
        assert max(watch.saved) == last
        resume = last
    with watched() as watch:
        summary = fit(config(), tmp_path)
    assert watch.batches == straight.watch.batches[6:]
    assert list(watch.saved) == [8]
    assert_same(watch.saved[8], straight.watch.saved[8])
    assert metrics(tmp_path) == metrics(straight.workdir)
    assert without_times(summary) == without_times(straight.summary)
    images = [(workdir / "samples" / "000008_joint.png").read_bytes() for workdir in (tmp_path, straight.workdir)]
    assert images[0] == images[1]


def test_resuming_a_finished_run_changes_nothing(straight):
    before = files(straight.workdir)
    with watched() as watch:
        assert fit(config(), straight.workdir) == straight.summary
    assert watch == Watch()
    assert files(straight.workdir) == before


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: config(learning_rate=0.5), r"stages\[0\]\.learning_rate was 0\.\d+, is 0\.5; stages\[1\]\.learning"),
        (lambda: config({"model.transformer.lora_rank": 8}), r"system\.transformer\.lora_rank was 4, is 8"),
        (lambda: config({"data.procedural.train.seed": 7}), r"data\.seed was 0, is 7"),
        (lambda: config({"seed": 1}), r"seed was 0, is 1"),
    ],
)
def test_checkpoint_of_another_configuration(straight, other, message):
    before = files(straight.workdir)
    with pytest.raises(InputError, match=message):
        fit(other(), straight.workdir)
    assert files(straight.workdir) == before


def test_loss_that_is_not_finite(tmp_path):
    # The first stage is sound; the second jumps so far in its first step that nothing can follow.
    changes = {"stages.joint.learning_rate": 1e30, "checkpoint.every": 1}
    for consumed in (5, 1):
        with watched() as watch, pytest.raises(InputError, match=r"'joint' diverged at step 5.*last good .* is step 4"):
            fit(config(changes), tmp_path)
        assert len(watch.batches) == consumed
        assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]
        assert not (tmp_path / "summary.json").exists()


@contextlib.contextmanager
def file_size_limit(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_while_saving(straight, tmp_path):
    # Python ignores the limit's signal, so writes past it fail as on a full disk. It holds from the third batch on, and
    # lies between the images, 11 kB, and a checkpoint's arrays, 85 kB. The save of step 2 is done by then.
    def before_batch(number):
        if number == 3:
            while not (tmp_path / "checkpoints" / "2").exists():
                time.sleep(0.01)
            limit()

    with file_size_limit(16_000) as limit, watched(before_batch), pytest.raises(InputError) as failure:
        fit(config(), tmp_path)
    assert "could not save the checkpoint of step 4" in str(failure.value)
    assert "the last good checkpoint is step 2" in str(failure.value)
    with watched() as watch:
        fit(config(), tmp_path)
    assert watch.batches == straight.watch.batches[2:]
    assert_same(watch.saved[8], straight.watch.saved[8])
    assert metrics(tmp_path) == metrics(straight.workdir)


def test_full_disk_while_writing_metrics(tmp_path):
    with file_size_limit(0) as limit, watched(lambda n: n == 1 and limit()), pytest.raises(InputError) as failure:
        fit(config(), tmp_path)
    assert f"cannot write to {tmp_path}" in str(failure.value)


def test_damaged_checkpoint(straight, tmp_path):
    with watched(interrupt(4)), pytest.raises(KeyboardInterrupt):
        fit(config(), tmp_path)
    for path in (tmp_path / "checkpoints" / "2" / "arrays").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(InputError, match="checkpoints/2 cannot be read"):
        fit(config(), tmp_path)


def test_evaluation_before_and_after(tmp_path):
    tables = {
        "evaluation.tables": {
            "main": {"task": "style_subject", "split": "heldout"},
            "style": {"task": "style", "split": "heldout_families"},
            "subject": {"task": "subject", "split": "heldout_subjects"},
        }
    }
    small = {"evaluation.num_triplets": 8, "evaluation.batch_size": 8, "evaluation.num_steps": 2}
    summary = fit(tiny.config("joint", changes=tables | small), tmp_path)
    found = summary["evaluation"]
    assert set(found) == {"before", "after", "told_in_words", "target", "copy_content", "copy_style"}
    exact = {"style_accuracy", "style_patch_accuracy", "content_accuracy", "content_flat_accuracy", "mse"}
    for figures in found.values():
        assert set(figures) >= {*exact, "text_score"}
    assert found["told_in_words"] != found["before"]
    assert found["target"]["style_accuracy"] == found["target"]["content_accuracy"] == 1.0
    assert found["after"] == summary["stages"][0]["evaluation"]["main"] != found["before"]

    # Without a content image nobody knows the pose, so only the style is judged exactly; unseen families have no class.
    style, subject = summary["tables"]["style"], summary["tables"]["subject"]
    assert set(style) == {"before", "after", "told_in_words", "target", "copy_style"}
    assert set(style["after"]) == {"style_accuracy", "csd", "text_score", "judge_content_accuracy"}
    assert style["target"]["style_accuracy"] >= 7 / 8
    assert style["copy_style"]["csd"] == pytest.approx(1.0)
    assert set(subject) == {"before", "after", "target", "copy_content"}
    assert set(subject["after"]) == {
        "content_accuracy",
        "content_flat_accuracy",
        "mse",
        "text_score",
        "judge_style_accuracy",
    }
    assert subject["target"]["content_accuracy"] == 1.0
    for name in ("", "_style", "_subject"):
        assert (tmp_path / "samples" / f"before_after{name}.png").is_file()
    assert fit(tiny.config("joint", changes=tables | small), tmp_path) == summary  # nothing is judged again


def test_evaluation_of_an_unknown_task():
    with pytest.raises(InputError, match="task 'film' is unknown; use subject, style or style_subject"):
        config({"evaluation.tables.main.task": "film"})


def test_unknown_names():
    with pytest.raises(InputError, match=r"data\.source 'films' is unknown; known are .*procedural"):
        config({"data.source": "films"})
    with pytest.raises(InputError, match=r"run 'third' is unknown; known are .*disentanglement"):
        config({"run": ("disentanglement", "third")})


def test_target_that_does_not_divide_into_tokens():
    with pytest.raises(InputError, match=r"'style_alignment': target_size 18x16 must be a multiple of 4 pixels"):
        config(target_size=(18, 16))


def test_batch_that_does_not_divide_over_the_mesh(tmp_path):
    with pytest.raises(InputError, match=r"stages\.style_alignment\.batch_size / accumulate is 12, .* over 8"):
        fit(config(batch_size=12), tmp_path)
    with pytest.raises(InputError, match=r"batch_size / accumulate is 4, .* over 8"):
        fit(config(accumulate=2), tmp_path)
    with pytest.raises(InputError, match=r"heldout\.batch_size is 12, .* over 8"):
        fit(config({"heldout.batch_size": 12}), tmp_path)


def test_aspect_buckets(tmp_path):
    items = []
    for number in range(32):
        size = ((16, 16), (24, 12))[number % 2]  # width, height
        Image.new("RGB", size, (8 * number, 0, 99)).save(tmp_path / f"{number}.png")
        items.append(dict(target=f"{number}.png", content=f"{number}.png", styles=["good.png"]))
    changes = json_data(tmp_path, items) | {"data.num_workers": 1}
    run = tiny.config("joint", changes=changes, steps=2, target_aspects=((512, 512), (384, 768)))
    with watched() as watch:
        summary = fit(run, tmp_path / "run")
    assert set(watch.sizes) == {((16, 16), (16, 16)), ((12, 24), (16, 16))}
    assert summary["stages"][0]["heldout_loss_after"] > 0
    assert [line["step"] for line in metrics(tmp_path / "run") if "loss" in line] == [1, 2]


def test_mesh_that_does_not_fit(tmp_path):
    with pytest.raises(InputError, match="does not divide 8 devices"):
        fit(config({"mesh.data": 3}), tmp_path)
    siglip = {"model.siglip.hidden_size": 20, "model.transformer.projector.siglip_dim": 20}
    with pytest.raises(InputError, match=r"siglip/layers/.* 20 does not divide by mesh axis 'fsdp' of size 8"):
        fit(config(siglip | {"mesh.data": 1, "mesh.fsdp": 8}), tmp_path)


def test_workdir_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(InputError, match=f"cannot use --workdir {workdir}"):
            fit(config(), workdir)


def test_empty_data(tmp_path):
    with pytest.raises(InputError, match=r"train\.json .* at least one item"):
        fit(config(json_data(tmp_path, [])), tmp_path / "run")


@pytest.mark.parametrize("name", ["target", "content"])
def test_image_that_does_not_decode(tmp_path, name):
    # The codec is fitted to the targets before training; all other images are first read inside the data pipeline.
    changes = json_data(tmp_path, [{}, {name: "bad.png"}] * 4)
    with pytest.raises(InputError, match=r"bad\.png \(item [1357] of .*train\.json\) cannot be decoded"):
        fit(config(changes), tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
